"""ResNet-20 on CIFAR-10 as JPEG files, float, for more further epochs than any quantized row.

    python tools/train.py configs/cifar10/resnet20.py --load-from resnet20.pth --data-root FOLDER
    python tools/train.py configs/cifar10/resnet20_control.py --data-root FOLDER
    lbitcls test work_dirs/resnet20_control/latest.pth --data-root FOLDER

What the quantized networks are compared with. For accuracy and time see docs/results/cifar10_resnet20.md.
"""

_base_ = "resnet20.py"

load_from = "work_dirs/resnet20/latest.pth"
optimizer = dict(lr=0.04)
total_epochs = 54

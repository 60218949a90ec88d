"""ResNet-20 on CIFAR-10 as JPEG files, LSQ W2A2: from the float network in 40 epochs.

    python tools/train.py configs/cifar10/resnet20.py --load-from resnet20.pth --data-root FOLDER
    python tools/train.py configs/cifar10/resnet20_w2a2.py --data-root FOLDER
    lbitcls test work_dirs/resnet20_w2a2/latest.pth --data-root FOLDER

Learns from the float model's predictions alone, without labels. For accuracy and time see
docs/results/cifar10_resnet20.md. On a GPU, or a CPU without VNNI: `--options kernels=auto`.
"""

_base_ = "_base_/resnet20_lsq.py"

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
total_epochs = 40

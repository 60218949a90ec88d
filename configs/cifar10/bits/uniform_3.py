"""`resnet20_w3a3.py` in two epochs: 3 bits in every layer, to compare with `by_layer_3.py`.

    python tools/train.py configs/cifar10/resnet20.py --load-from resnet20.pth --data-root FOLDER
    python tools/train.py configs/cifar10/bits/uniform_3.py --data-root FOLDER

For accuracy and time see docs/results/cifar10_resnet20.md.
"""

_base_ = "../resnet20_w3a3.py"

total_epochs = 2

"""ResNet-20 on CIFAR-10, float, with option-A shortcuts: the starting point of the quantized configs.

    python tools/train.py configs/Float/resnet20/config32_res20_float_32w32f.py --data-root FOLDER

Expected top-1: 91.73 % in this recipe's source, 91.25 % in the ResNet paper as quoted there [akamaster]; not yet
reproduced here.
Hyper-parameters: the source's [akamaster]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet20.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_resnet20.py",
]

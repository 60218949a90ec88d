"""VGG-small on CIFAR-10, float: the starting point of the quantized configs.

    python tools/train.py configs/Float/vggsmall/config32_vggsmall_float_32w32f.py --data-root FOLDER

Expected top-1: 93.8 % in the LQ-Nets paper as quoted by a port of it [LQ-MXNet], 93.34 % in another project [hustzxd];
not yet reproduced here.
Hyper-parameters: LQ-Nets' [LQ-Nets]; it subtracts the mean image, here channels are normalized. Time: not measured.
"""

_base_ = [
    "../../_base_/models/vggsmall.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_vggsmall.py",
]

data = dict(samples_per_gpu=100)

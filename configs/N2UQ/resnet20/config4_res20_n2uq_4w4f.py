"""ResNet-20 on CIFAR-10, N2UQ W4A4, first and last layers in float (Liu et al., arXiv:2111.14826).

    python tools/train.py configs/Float/resnet20/config32_res20_float_32w32f.py --data-root FOLDER
    python tools/train.py configs/N2UQ/resnet20/config4_res20_n2uq_4w4f.py --data-root FOLDER

Expected top-1: no figure was found.
Hyper-parameters: the project's defaults, those of LSQ for this network [hustzxd]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet20.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_lsq.py",
    "../../_base_/methods/n2uq.py",
]

data = dict(samples_per_gpu=512)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
load_from = "work_dirs/config32_res20_float_32w32f/latest.pth"

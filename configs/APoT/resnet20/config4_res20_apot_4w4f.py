"""ResNet-20 on CIFAR-10, APoT W4A4, 8-bit weights and float inputs at the ends (Li et al., arXiv:1909.13144).

    python tools/train.py configs/Float/resnet20/config32_res20_float_32w32f.py --data-root FOLDER
    python tools/train.py configs/APoT/resnet20/config4_res20_apot_4w4f.py --data-root FOLDER

Expected top-1: 92.45 % in the authors' code, whose shortcuts have convolutions, from a float model of 92.96 % [APoT];
not yet reproduced here.
Hyper-parameters: the authors'; clips have no separate learning rate here [APoT]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet20.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_apot.py",
    "../../_base_/methods/apot.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
load_from = "work_dirs/config32_res20_float_32w32f/latest.pth"

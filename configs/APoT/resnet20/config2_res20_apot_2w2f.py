"""ResNet-20 on CIFAR-10, APoT W2A2, 8-bit weights and float inputs at the ends (Li et al., arXiv:1909.13144).

    python tools/train.py configs/APoT/resnet20/config3_res20_apot_3w3f.py --data-root FOLDER
    python tools/train.py configs/APoT/resnet20/config2_res20_apot_2w2f.py --data-root FOLDER

Expected top-1: 90.96 % in the authors' code, whose shortcuts have convolutions, from a float model of 92.96 % [APoT];
not yet reproduced here.
Hyper-parameters: the authors', starting from the 3-bit model; clips have no separate learning rate here [APoT]. Time:
not measured.
"""

_base_ = [
    "../../_base_/models/resnet20.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_apot.py",
    "../../_base_/methods/apot.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
optimizer = dict(weight_decay=3e-5)
load_from = "work_dirs/config3_res20_apot_3w3f/latest.pth"

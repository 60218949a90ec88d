"""ResNet-20 on CIFAR-10, PACT W2A2, first and last layers in float (Choi et al., arXiv:1805.06085).

    python tools/train.py configs/PACT/resnet20/config2_res20_pact_2w2f.py --data-root FOLDER

Expected top-1: 88.9 % in the paper's Table 2, 87.07 % in the reimplementation that quotes it, whose first and last
layer have 8 bits [KwangHoonAn]; not yet reproduced here.
Hyper-parameters: the paper's, from another reimplementation [App0lyon]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet20.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_pact.py",
    "../../_base_/methods/pact.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2, clip_decay=2e-4)))

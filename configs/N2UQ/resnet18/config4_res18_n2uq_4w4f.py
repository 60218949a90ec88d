"""ResNet-18 on ImageNet, N2UQ W4A4, first and last layers in float (Liu et al., arXiv:2111.14826).

    tools/dist_train.sh configs/N2UQ/resnet18/config4_res18_n2uq_4w4f.py 8 --data-root IMAGENET

Expected top-1: 72.90 % in the authors' table, with distillation [N2UQ]; not yet reproduced here.
Hyper-parameters: the authors', without their distillation from a ResNet-101 and with the network's ReLUs, where theirs
has PReLUs between learned shifts [N2UQ]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_n2uq.py",
    "../../_base_/methods/n2uq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
load_from = "torchvision://resnet18.IMAGENET1K_V1"

"""ResNet-50 on ImageNet, N2UQ W2A2, first and last layers in float (Liu et al., arXiv:2111.14826).

    tools/dist_train.sh configs/N2UQ/resnet50/config2_res50_n2uq_2w2f.py 8 --data-root IMAGENET

Expected top-1: 75.80 % in the authors' table, with distillation [N2UQ]; not yet reproduced here.
Hyper-parameters: the authors', without their distillation from a ResNet-101 and with the network's ReLUs, where theirs
has PReLUs between learned shifts [N2UQ]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_n2uq.py",
    "../../_base_/methods/n2uq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
load_from = "torchvision://resnet50.IMAGENET1K_V1"

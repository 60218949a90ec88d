"""MobileNetV2 on ImageNet, N2UQ W4A4, first and last layers in float (Liu et al., arXiv:2111.14826).

    tools/dist_train.sh configs/N2UQ/mobilenetv2/config4_mobilenetv2_n2uq_4w4f.py 8 --data-root IMAGENET

Expected top-1: 72.10 % in the authors' table, with distillation [N2UQ]; not yet reproduced here.
Hyper-parameters: the authors' for their ResNets, without distillation [N2UQ]. Their code for this network was not
consulted. Time: not measured.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_n2uq.py",
    "../../_base_/methods/n2uq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"

"""MobileNetV2 on ImageNet, UQ W4A4, 8-bit weights and float inputs at the ends (APoT's baseline, arXiv:1909.13144).

    tools/dist_train.sh configs/UQ/mobilenetv2/config4_mobilenetv2_uq_4w4f.py 8 --data-root IMAGENET

Expected top-1: 67.07 % in the original project [original]; not yet reproduced here.
Hyper-parameters: the original's [original]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/uq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.03)
load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"

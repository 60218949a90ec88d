"""ResNet-50 on ImageNet, UQ W4A4, 8-bit weights and float inputs at the ends (APoT's baseline, arXiv:1909.13144).

    tools/dist_train.sh configs/UQ/resnet50/config4_res50_uq_4w4f.py 8 --data-root IMAGENET

Expected top-1: 76.13 % in the original project [original]; not yet reproduced here.
Hyper-parameters: the original's [original]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/uq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.03, weight_decay=2.5e-5)
load_from = "torchvision://resnet50.IMAGENET1K_V1"

"""ResNet-50 on ImageNet, UQ W3A3, 8-bit weights and float inputs at the ends (APoT's baseline, arXiv:1909.13144).

    tools/dist_train.sh configs/UQ/resnet50/config4_res50_uq_4w4f.py 8 --data-root IMAGENET
    tools/dist_train.sh configs/UQ/resnet50/config3_res50_uq_3w3f.py 8 --data-root IMAGENET

Expected top-1: 75.31 % in the original project [original]; not yet reproduced here.
Hyper-parameters: the original's, starting from the 4-bit model as there [original]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/uq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))
optimizer = dict(lr=0.003, weight_decay=2.5e-5)
load_from = "work_dirs/config4_res50_uq_4w4f/latest.pth"

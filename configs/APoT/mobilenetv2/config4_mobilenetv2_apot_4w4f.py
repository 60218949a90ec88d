"""MobileNetV2 on ImageNet, APoT W4A4, 8-bit weights and float inputs at the ends (Li et al., arXiv:1909.13144).

    tools/dist_train.sh configs/APoT/mobilenetv2/config4_mobilenetv2_apot_4w4f.py 8 --data-root IMAGENET

Expected top-1: no figure was found with certainty (the original project's row repeats its row of LSQ).
Hyper-parameters: the original's [original]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/apot.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.04)
load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"

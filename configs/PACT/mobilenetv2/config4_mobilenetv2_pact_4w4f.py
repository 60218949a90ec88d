"""MobileNetV2 on ImageNet, PACT W4A4, first and last layers in float (Choi et al., arXiv:1805.06085).

    tools/dist_train.sh configs/PACT/mobilenetv2/config4_mobilenetv2_pact_4w4f.py 8 --data-root IMAGENET

Expected top-1: no figure was found.
Hyper-parameters: the paper's hyper-parameters could not be consulted; these are the project's defaults, the original's
for DSQ on this network [original]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/pact.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.016)
lr_config = dict(warmup_iters=600, warmup_ratio=0.025)
total_epochs = 100
load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"

"""MobileNetV2 on ImageNet, DSQ W4A4, first and last layers at 8 bits (Gong et al., arXiv:1908.05033).

    tools/dist_train.sh configs/DSQ/mobilenetv2/config4_mobilenetv2_dsq_4w4f.py 8 --data-root IMAGENET

Expected top-1: 62.23 % in the original project [original]; not yet reproduced here. The paper's result could not be
consulted.
Hyper-parameters: the original's [original]. Time: not measured.
Deviates from the original: its first layer has a float input; here that input has 8 bits, so that an exported model
computes every convolution in integers.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/dsq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.016)
lr_config = dict(warmup_iters=600, warmup_ratio=0.025)
total_epochs = 100
load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"

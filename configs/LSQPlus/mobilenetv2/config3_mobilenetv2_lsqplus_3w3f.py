"""MobileNetV2 on ImageNet, LSQ+ W3A3, first and last layers at 8 bits (Bhalgat et al., arXiv:2004.09576).

    tools/dist_train.sh configs/LSQPlus/mobilenetv2/config3_mobilenetv2_lsqplus_3w3f.py 8 --data-root IMAGENET

Expected top-1: 64.36 % in the original project [original]; not yet reproduced here.
Hyper-parameters: the original's [original]. Time: not measured.
Deviates from the original: its ends are LSQ, the first with a float input; here they are LSQ+ with 8-bit inputs, so
that an exported model computes every convolution in integers.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_step110.py",
    "../../_base_/methods/lsqplus.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))
lr_config = dict(step=[30, 60, 90, 120, 150, 160])
total_epochs = 180
load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"

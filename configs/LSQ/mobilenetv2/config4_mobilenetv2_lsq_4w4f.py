"""MobileNetV2 on ImageNet, LSQ W4A4, first and last layers at 8 bits (Esser et al., arXiv:1902.08153).

    tools/dist_train.sh configs/LSQ/mobilenetv2/config4_mobilenetv2_lsq_4w4f.py 8 --data-root IMAGENET

Expected top-1: 67.98 % in the original project [original], 70.6 % in the MQBench paper by other means, as quoted by a
user who reached 68.66 % [MQBench]; not yet reproduced here.
Hyper-parameters: the original's [original]. Time: not measured.
Deviates from the original: its first layer has a float input; here that input has 8 bits, so that an exported model
computes every convolution in integers.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/lsq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.04)
total_epochs = 180
load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"

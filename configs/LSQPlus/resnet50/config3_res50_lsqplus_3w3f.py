"""ResNet-50 on ImageNet, LSQ+ W3A3, first and last layers at 8 bits (Bhalgat et al., arXiv:2004.09576).

    tools/dist_train.sh configs/LSQPlus/resnet50/config3_res50_lsqplus_3w3f.py 8 --data-root IMAGENET

Expected top-1: 76.08 % in the original project [original]; not yet reproduced here.
Hyper-parameters: the original's [original]. Time: not measured.
Deviates from the original: its ends are LSQ, the first with a float input; here they are LSQ+ with 8-bit inputs, so
that an exported model computes every convolution in integers.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/lsqplus.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))
total_epochs = 110
load_from = "torchvision://resnet50.IMAGENET1K_V1"

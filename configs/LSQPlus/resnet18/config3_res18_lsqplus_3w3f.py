"""ResNet-18 on ImageNet, LSQ+ W3A3, first and last layers at 8 bits (Bhalgat et al., arXiv:2004.09576).

    tools/dist_train.sh configs/LSQPlus/resnet18/config3_res18_lsqplus_3w3f.py 8 --data-root IMAGENET

Expected top-1: 69.28 % in the original project [original]; not yet reproduced here. The paper's result could not be
consulted.
Hyper-parameters: the original's [original]. Time: not measured.
Deviates from the original: its ends are LSQ, the first with a float input; here they are LSQ+ with 8-bit inputs, so
that an exported model computes every convolution in integers.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_step110.py",
    "../../_base_/methods/lsqplus.py",
]

data = dict(samples_per_gpu=128)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))
optimizer = dict(lr=0.04)
load_from = "torchvision://resnet18.IMAGENET1K_V1"

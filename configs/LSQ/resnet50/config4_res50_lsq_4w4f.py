"""ResNet-50 on ImageNet, LSQ W4A4, first and last layers at 8 bits (Esser et al., arXiv:1902.08153).

    tools/dist_train.sh configs/LSQ/resnet50/config4_res50_lsq_4w4f.py 8 --data-root IMAGENET

Expected top-1: 76.7 % in the paper, which uses a pre-activation ResNet [LSQ notes], 76.88 % in the original project
[original]; not yet reproduced here.
Hyper-parameters: the paper's for ResNet-18 [LSQ notes], except batch size and crop, which are the project's. Time: not
measured.
Deviates from the original: its first layer has a float input; here that input has 8 bits, so that an exported model
computes every convolution in integers. The schedule is the paper's, like the expected results.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_lsq.py",
    "../../_base_/methods/lsq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
load_from = "torchvision://resnet50.IMAGENET1K_V1"

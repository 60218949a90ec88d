"""ResNet-50 on ImageNet, DSQ W3A3, first and last layers at 8 bits (Gong et al., arXiv:1908.05033).

    tools/dist_train.sh configs/DSQ/resnet50/config3_res50_dsq_m1_16_3w3f.py 8 --data-root IMAGENET

Expected top-1: 74.25 % in the original project, after 70 epochs [original]; not yet reproduced here.
Hyper-parameters: the original's, its rate for one machine (it had 9) [original]. Time: not measured.
Deviates from the original: its first layer has a float input; here that input has 8 bits, so that an exported model
computes every convolution in integers.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_step100.py",
    "../../_base_/methods/dsq.py",
]

data = dict(samples_per_gpu=16)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))
optimizer = dict(lr=0.001)
load_from = "torchvision://resnet50.IMAGENET1K_V1"

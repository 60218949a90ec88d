"""ResNet-18 on ImageNet, DSQ W4A4, first and last layers at 8 bits (Gong et al., arXiv:1908.05033).

    tools/dist_train.sh configs/DSQ/resnet18/config4_res18_dsq_4w4f.py 8 --data-root IMAGENET

Expected top-1: 69.70 % in the original project [original], 69.54 % in another reimplementation [ricky40403]; not yet
reproduced here. The paper's result could not be consulted.
Hyper-parameters: the original's [original]. Time: not measured.
Deviates from the original: its first layer has a float input; here that input has 8 bits, so that an exported model
computes every convolution in integers.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_step100.py",
    "../../_base_/methods/dsq.py",
]

data = dict(samples_per_gpu=128)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.002)
load_from = "torchvision://resnet18.IMAGENET1K_V1"

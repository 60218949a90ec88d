"""ResNet-18 on ImageNet, DoReFa W4A4, first and last layers in float (Zhou et al., arXiv:1606.06160).

    tools/dist_train.sh configs/DoReFa/resnet18/config4_res18_dorefa_4w4f.py 8 --data-root IMAGENET

Expected top-1: 68.1 % as quoted in a later paper's README [N2UQ], 69.33 % in the original project, whose first and last
layer have 8 bits [original]; not yet reproduced here.
Hyper-parameters: the original's [original]. Time: not measured.
Deviates from the original: its ends have 8-bit weights; here they stay float, as in the code of the method's authors.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/dorefa.py",
]

data = dict(samples_per_gpu=128)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.02)
lr_config = dict(warmup_iters=251, warmup_ratio=0.025)
total_epochs = 180
load_from = "torchvision://resnet18.IMAGENET1K_V1"

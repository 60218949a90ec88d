"""ResNet-50 on ImageNet, DoReFa W4A4, first and last layers in float (Zhou et al., arXiv:1606.06160).

    tools/dist_train.sh configs/DoReFa/resnet50/config4_res50_dorefa_4w4f.py 8 --data-root IMAGENET

Expected top-1: 75.42 % in the original project, whose first and last layer have 8 bits [original]; not yet reproduced
here.
Hyper-parameters: the original's [original]. Time: not measured.
Deviates from the original: its ends have 8-bit weights; here they stay float, as in the code of the method's authors.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/dorefa.py",
]

data = dict(samples_per_gpu=16)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.016)
lr_config = dict(warmup_iters=1252, warmup_ratio=0.1)
total_epochs = 100
load_from = "torchvision://resnet50.IMAGENET1K_V1"

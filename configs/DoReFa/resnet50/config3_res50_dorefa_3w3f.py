"""ResNet-50 on ImageNet, DoReFa W3A3, first and last layers in float (Zhou et al., arXiv:1606.06160).

    tools/dist_train.sh configs/DoReFa/resnet50/config3_res50_dorefa_3w3f.py 8 --data-root IMAGENET

Expected top-1: 71.12 % in the original project, whose first and last layer have 8 bits [original]; not yet reproduced
here.
Hyper-parameters: the original's; what it starts from is not stated there [original]. Time: not measured.
Deviates from the original: its ends have 8-bit weights; here they stay float, as in the code of the method's authors.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/dorefa.py",
]

data = dict(samples_per_gpu=16)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))
optimizer = dict(lr=0.008)
lr_config = dict(warmup_iters=2503, warmup_ratio=0.025)
total_epochs = 100
load_from = "torchvision://resnet50.IMAGENET1K_V1"

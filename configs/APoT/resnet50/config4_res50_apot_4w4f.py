"""ResNet-50 on ImageNet, APoT W4A4, 8-bit weights and float inputs at the ends (Li et al., arXiv:1909.13144).

    tools/dist_train.sh configs/APoT/resnet50/config4_res50_apot_4w4f.py 8 --data-root IMAGENET

Expected top-1: 76.80 % in the authors' code [APoT], 76.41 % in the original project [original]; not yet reproduced
here.
Hyper-parameters: the authors' [APoT]. Time: not measured.
Deviates from the original: the schedule is the authors', like the expected results.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_step100.py",
    "../../_base_/methods/apot.py",
]

data = dict(samples_per_gpu=64)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
optimizer = dict(lr=0.05)
load_from = "torchvision://resnet50.IMAGENET1K_V1"

"""ResNet-18 on ImageNet, UQ W4A4, 8-bit weights and float inputs at the ends (APoT's baseline, arXiv:1909.13144).

    tools/dist_train.sh configs/UQ/resnet18/config4_res18_uq_4w4f.py 8 --data-root IMAGENET

Expected top-1: 70.54 % in the APoT authors' code [APoT], 70.48 % in the original project [original]; not yet reproduced
here.
Hyper-parameters: the authors' [APoT]. Time: not measured.
Deviates from the original: the schedule is the authors', like the expected results.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_step100.py",
    "../../_base_/methods/uq.py",
]

data = dict(samples_per_gpu=128)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
load_from = "torchvision://resnet18.IMAGENET1K_V1"

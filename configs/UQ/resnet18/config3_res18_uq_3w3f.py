"""ResNet-18 on ImageNet, UQ W3A3, 8-bit weights and float inputs at the ends (APoT's baseline, arXiv:1909.13144).

    tools/dist_train.sh configs/UQ/resnet18/config3_res18_uq_3w3f.py 8 --data-root IMAGENET

Expected top-1: 69.57 % in the APoT authors' code [APoT], 69.62 % in the original project [original]; not yet reproduced
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
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))
load_from = "torchvision://resnet18.IMAGENET1K_V1"

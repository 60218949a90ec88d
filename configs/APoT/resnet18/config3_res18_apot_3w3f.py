"""ResNet-18 on ImageNet, APoT W3A3, 8-bit weights and float inputs at the ends (Li et al., arXiv:1909.13144).

    tools/dist_train.sh configs/APoT/resnet18/config3_res18_apot_3w3f.py 8 --data-root IMAGENET

Expected top-1: 69.79 % in the authors' code [APoT], 69.55 % in the original project [original]; not yet reproduced
here.
Hyper-parameters: the authors' [APoT]. Time: not measured.
Deviates from the original: the schedule is the authors', like the expected results.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_step100.py",
    "../../_base_/methods/apot.py",
]

data = dict(samples_per_gpu=128)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))
load_from = "torchvision://resnet18.IMAGENET1K_V1"

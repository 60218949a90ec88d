"""ResNet-18 on ImageNet, APoT W2A2, 8-bit weights and float inputs at the ends (Li et al., arXiv:1909.13144).

    tools/dist_train.sh configs/APoT/resnet18/config2_res18_apot_2w2f.py 8 --data-root IMAGENET

Expected top-1: 66.46 % in the authors' code, with a calibrated gradient that is not implemented here [APoT]; not yet
reproduced here.
Hyper-parameters: the authors' [APoT]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_step100.py",
    "../../_base_/methods/apot.py",
]

data = dict(samples_per_gpu=128)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
optimizer = dict(lr=0.04, weight_decay=2e-5)
load_from = "torchvision://resnet18.IMAGENET1K_V1"

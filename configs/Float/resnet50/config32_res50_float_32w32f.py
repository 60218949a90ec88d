"""ResNet-50 on ImageNet, float: the baseline of the quantized configs.

    tools/dist_train.sh configs/Float/resnet50/config32_res50_float_32w32f.py 8 --data-root IMAGENET

Expected top-1: 76.130 % [torchvision, ResNet50_Weights.IMAGENET1K_V1]; not yet reproduced here. The quantized configs
start from those published weights.
Hyper-parameters: the reference script's [torchvision]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_torchvision.py",
]

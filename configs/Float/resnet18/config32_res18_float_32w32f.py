"""ResNet-18 on ImageNet, float: the baseline of the quantized configs.

    tools/dist_train.sh configs/Float/resnet18/config32_res18_float_32w32f.py 8 --data-root IMAGENET

Expected top-1: 69.758 % [torchvision, ResNet18_Weights.IMAGENET1K_V1]; not yet reproduced here. The quantized configs
start from those published weights.
Hyper-parameters: the reference script's [torchvision]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_torchvision.py",
]

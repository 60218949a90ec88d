"""MobileNetV2 on ImageNet, float: the baseline of the quantized configs.

    tools/dist_train.sh configs/Float/mobilenetv2/config32_mobilenetv2_float_32w32f.py 8 --data-root IMAGENET

Expected top-1: 71.878 % [torchvision, MobileNet_V2_Weights.IMAGENET1K_V1]; not yet reproduced here. The quantized
configs start from those published weights.
Hyper-parameters: the reference script's [torchvision]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_torchvision.py",
]

optimizer = dict(lr=0.045, weight_decay=4e-5)
lr_config = dict(step=1, gamma=0.98)
total_epochs = 300

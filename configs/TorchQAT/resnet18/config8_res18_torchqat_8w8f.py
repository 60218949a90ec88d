"""ResNet-18 on ImageNet, PyTorch's QAT W8A8, BatchNorm folded (Jacob et al., arXiv:1712.05877).

    tools/dist_train.sh configs/TorchQAT/resnet18/config8_res18_torchqat_8w8f.py 8 --data-root IMAGENET

Expected top-1: no figure was found for QAT (after training: 69.494 % [torchvision, ResNet18_QuantizedWeights]); not yet
reproduced here.
Hyper-parameters: the reference script's for MobileNetV2 [torchvision]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_qat.py",
    "../../_base_/methods/torchqat.py",
]

load_from = "torchvision://resnet18.IMAGENET1K_V1"

"""MobileNetV2 on ImageNet, PyTorch's QAT W8A8, BatchNorm folded (Jacob et al., arXiv:1712.05877).

    tools/dist_train.sh configs/TorchQAT/mobilenetv2/config8_mobilenetv2_torchqat_8w8f.py 8 --data-root IMAGENET

Expected top-1: 71.658 % with QNNPACK's settings [torchvision, MobileNet_V2_QuantizedWeights]; not yet reproduced here.
Hyper-parameters: the reference script's, which converges after about 10 of the 90 epochs; it stops observing after 4
epochs and BatchNorm's statistics after 3, which is not done here [torchvision]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_qat.py",
    "../../_base_/methods/torchqat.py",
]

load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"

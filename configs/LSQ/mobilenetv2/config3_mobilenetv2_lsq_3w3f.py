"""MobileNetV2 on ImageNet, LSQ W3A3, first and last layers at 8 bits (Esser et al., arXiv:1902.08153).

    tools/dist_train.sh configs/LSQ/mobilenetv2/config3_mobilenetv2_lsq_3w3f.py 8 --data-root IMAGENET

Expected top-1: 64.41 % in the original project, 57.92 % in another version of its table [original]; not yet reproduced
here.
Hyper-parameters: the original's, which starts from its 4-bit model and not, as here, from float weights [original].
Time: not measured.
Deviates from the original: its first layer has a float input; here that input has 8 bits, so that an exported model
computes every convolution in integers.
"""

_base_ = [
    "../../_base_/models/mobilenetv2.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_cosine120.py",
    "../../_base_/methods/lsq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))
optimizer = dict(lr=0.003, weight_decay=5e-5)
total_epochs = 180
load_from = "torchvision://mobilenet_v2.IMAGENET1K_V1"

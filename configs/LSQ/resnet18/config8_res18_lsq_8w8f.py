"""ResNet-18 on ImageNet, LSQ W8A8 (Esser et al., arXiv:1902.08153).

    tools/dist_train.sh configs/LSQ/resnet18/config8_res18_lsq_8w8f.py 8 --data-root IMAGENET

Expected top-1: 71.1 % in the paper, which uses a pre-activation ResNet [LSQ notes]; not yet reproduced here.
Hyper-parameters: the paper's, one epoch at a tenth of the rate [LSQ notes], except batch size and crop, which are the
project's. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_lsq.py",
    "../../_base_/methods/lsq.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=8, num_bit_a=8)))
optimizer = dict(lr=0.001)
total_epochs = 1
load_from = "torchvision://resnet18.IMAGENET1K_V1"

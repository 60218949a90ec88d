"""ResNet-50 on ImageNet, PACT W3A3, first and last layers in float (Choi et al., arXiv:1805.06085).

    tools/dist_train.sh configs/PACT/resnet50/config3_res50_pact_3w3f.py 8 --data-root IMAGENET

Expected top-1: 75.3 % as quoted in notes on the LSQ paper [LSQ notes]; not yet reproduced here.
Hyper-parameters: the paper's, for pre-activation ResNets, from a reimplementation [App0lyon]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet50.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_pact.py",
    "../../_base_/methods/pact.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))

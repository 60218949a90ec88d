"""ResNet-18 on ImageNet, PACT W2A2, first and last layers in float (Choi et al., arXiv:1805.06085).

    tools/dist_train.sh configs/PACT/resnet18/config2_res18_pact_2w2f.py 8 --data-root IMAGENET

Expected top-1: 64.4 % as quoted in a later paper's README [N2UQ]; not yet reproduced here.
Hyper-parameters: the paper's, for pre-activation ResNets, from a reimplementation [App0lyon]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet18.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_pact.py",
    "../../_base_/methods/pact.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))

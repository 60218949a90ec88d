"""ResNet-20 on CIFAR-10, DoReFa W3A3, first and last layers in float (Zhou et al., arXiv:1606.06160).

    python tools/train.py configs/DoReFa/resnet20/config3_res20_dorefa_3w3f.py --data-root FOLDER

Expected top-1: no figure was found (for W3A8 and the pre-activation network: 91.6 % on average [distiller]); not yet
reproduced here.
Hyper-parameters: that recipe's [distiller]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet20.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_dorefa.py",
    "../../_base_/methods/dorefa.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=3, num_bit_a=3)))

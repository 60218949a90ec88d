"""ResNet-20 on CIFAR-10, DoReFa W2A2, first and last layers in float (Zhou et al., arXiv:1606.06160).

    python tools/train.py configs/DoReFa/resnet20/config2_res20_dorefa_2w2f.py --data-root FOLDER

Expected top-1: no figure was found.
Hyper-parameters: a published recipe's for 3-bit weights and 8-bit activations [distiller]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/resnet20.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_dorefa.py",
    "../../_base_/methods/dorefa.py",
]

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))

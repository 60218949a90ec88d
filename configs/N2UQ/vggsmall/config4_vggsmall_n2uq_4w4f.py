"""VGG-small on CIFAR-10, N2UQ W4A4, first and last layers in float (Liu et al., arXiv:2111.14826).

    python tools/train.py configs/Float/vggsmall/config32_vggsmall_float_32w32f.py --data-root FOLDER
    python tools/train.py configs/N2UQ/vggsmall/config4_vggsmall_n2uq_4w4f.py --data-root FOLDER

Expected top-1: no figure was found.
Hyper-parameters: the project's defaults, LQ-Nets' for this network [LQ-Nets]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/vggsmall.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_vggsmall.py",
    "../../_base_/methods/n2uq.py",
]

data = dict(samples_per_gpu=100)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
load_from = "work_dirs/config32_vggsmall_float_32w32f/latest.pth"

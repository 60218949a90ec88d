"""VGG-small on CIFAR-10, UQ W4A4, 8-bit weights and float inputs at the ends (APoT's baseline, arXiv:1909.13144).

    python tools/train.py configs/Float/vggsmall/config32_vggsmall_float_32w32f.py --data-root FOLDER
    python tools/train.py configs/UQ/vggsmall/config4_vggsmall_uq_4w4f.py --data-root FOLDER

Expected top-1: no figure was found.
Hyper-parameters: the paper's hyper-parameters could not be consulted; these are the project's defaults, LQ-Nets' for
this network [LQ-Nets]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/vggsmall.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_vggsmall.py",
    "../../_base_/methods/uq.py",
]

data = dict(samples_per_gpu=100)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=4, num_bit_a=4)))
load_from = "work_dirs/config32_vggsmall_float_32w32f/latest.pth"

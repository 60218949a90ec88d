"""VGG-small on CIFAR-10, LSQ W2A2, first and last layers at 8 bits (Esser et al., arXiv:1902.08153).

    python tools/train.py configs/Float/vggsmall/config32_vggsmall_float_32w32f.py --data-root FOLDER
    python tools/train.py configs/LSQ/vggsmall/config2_vggsmall_lsq_2w2f.py --data-root FOLDER

Expected top-1: 93.42 % from a float model of 93.34 % [hustzxd]; not yet reproduced here. The paper has no CIFAR-10.
Hyper-parameters: that source gives none; these are LQ-Nets' for this network [LQ-Nets]. Time: not measured.
"""

_base_ = [
    "../../_base_/models/vggsmall.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_vggsmall.py",
    "../../_base_/methods/lsq.py",
]

data = dict(samples_per_gpu=100)
quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
load_from = "work_dirs/config32_vggsmall_float_32w32f/latest.pth"

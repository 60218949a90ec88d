"""ResNet-20 on CIFAR-10, PyTorch's QAT W8A8, BatchNorm folded (Jacob et al., arXiv:1712.05877).

    python tools/train.py configs/Float/resnet20/config32_res20_float_32w32f.py --data-root FOLDER
    python tools/train.py configs/TorchQAT/resnet20/config8_res20_torchqat_8w8f.py --data-root FOLDER

Expected top-1: no figure was found.
Hyper-parameters: the paper's hyper-parameters could not be consulted; these are the project's defaults. Time: not
measured.
"""

_base_ = [
    "../../_base_/models/resnet20.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_qat.py",
    "../../_base_/methods/torchqat.py",
]

load_from = "work_dirs/config32_res20_float_32w32f/latest.pth"

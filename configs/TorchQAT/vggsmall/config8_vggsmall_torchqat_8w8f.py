"""VGG-small on CIFAR-10, PyTorch's QAT W8A8, BatchNorm folded where no pooling is between (arXiv:1712.05877).

    python tools/train.py configs/Float/vggsmall/config32_vggsmall_float_32w32f.py --data-root FOLDER
    python tools/train.py configs/TorchQAT/vggsmall/config8_vggsmall_torchqat_8w8f.py --data-root FOLDER

Expected top-1: no figure was found.
Hyper-parameters: the paper's hyper-parameters could not be consulted; these are the project's defaults. Time: not
measured.
"""

_base_ = [
    "../../_base_/models/vggsmall.py",
    "../../_base_/datasets/cifar10.py",
    "../../_base_/schedules/cifar10_qat.py",
    "../../_base_/methods/torchqat.py",
]

load_from = "work_dirs/config32_vggsmall_float_32w32f/latest.pth"

"""LeNet-5 on MNIST, float, for as many further epochs as a quantized network gets: what it is compared with.

    python tools/train.py configs/mnist/lenet5.py --data-root FOLDER_WITH_MNIST
    python tools/train.py configs/mnist/lenet5_control.py --data-root FOLDER_WITH_MNIST

For accuracy and time see docs/results/mnist_lenet5.md.
"""

_base_ = "lenet5.py"

load_from = "work_dirs/lenet5/latest.pth"
optimizer = dict(lr=0.05)
total_epochs = 6

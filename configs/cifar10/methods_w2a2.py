"""ResNet-20 on CIFAR-10 as JPEG files, W2A2 in ten epochs from the float model: one recipe for all methods.

    python tools/train.py configs/cifar10/resnet20.py --load-from resnet20.pth --data-root FOLDER
    python tools/train.py configs/cifar10/methods_w2a2.py --data-root FOLDER

LSQ here; `python benchmarks/protocol_cifar10.py --data-root FOLDER --rows PACT` trains the row of another method. Each
method has its default options and first values, and learns from labels. For accuracy and time see
docs/results/cifar10_resnet20.md. On a GPU, or a CPU without VNNI: `--options kernels=auto`.
"""

_base_ = "_base_/resnet20_lsq.py"

quant_transformer = dict(quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2)))
calibration = dict(_delete_=True, num_batches=8)
distill = None
total_epochs = 10

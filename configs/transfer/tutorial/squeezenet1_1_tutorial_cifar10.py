"""SqueezeNet 1.1, frozen, with a new head for CIFAR-10: Adam at 0.001, batches of 100, Pad(4), flip and crop.

    python tools/train.py configs/transfer/tutorial/squeezenet1_1_tutorial_cifar10.py --data-root FOLDER

`FOLDER` holds `cifar10_jpg/train` and `cifar10_jpg/test` (or their archive) and
`weights/squeezenet1_1_caffe_fp16.pth`.

Images of 32 pixels, unchanged; 5 epochs.

Measured: 35.4 % top-1 on the 10,000 test images after the last epoch (seed 0), in 1.3 minutes of one CPU thread.
"""

_base_ = ["../_base_/squeezenet1_1.py", "_base_/cifar10.py"]

model = dict(backbone=dict(frozen=True), head=dict(num_classes=10))

"""MobileNetV2, frozen, with a new head for CIFAR-10: Adam at 0.001, batches of 100, Pad(4), flip and crop.

    python tools/train.py configs/transfer/tutorial/mobilenet_v2_tutorial_cifar10.py --data-root FOLDER

`FOLDER` holds `cifar10_jpg/train` and `cifar10_jpg/test` (or their archive) and
`weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

Images of 32 pixels, unchanged; 5 epochs.

Measured: 17.9 % top-1 on the 10,000 test images after the last epoch (seed 0), in 2.8 minutes of one CPU thread: at a
stride of 32 the last feature of a 32-pixel image is one point. `configs/cifar10/mobilenet_v2_transfer_features.py`
enlarges the images.
"""

_base_ = ["../_base_/mobilenet_v2.py", "_base_/cifar10.py"]

model = dict(backbone=dict(frozen=True), head=dict(num_classes=10))

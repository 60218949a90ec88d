"""MobileNetV2, frozen, with a new head for CIFAR-10: Adam at 0.001, batches of 100, Pad(4), flip and crop.

    python tools/train.py configs/transfer/tutorial/mobilenet_v2_tutorial_cifar10.py --data-root FOLDER

`FOLDER` holds `cifar10_jpg/train` and `cifar10_jpg/test` (or their archive) and
`weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

Images of 32 pixels, as they are; 5 epochs.

Not measured yet.
"""

_base_ = ["../_base_/mobilenet_v2.py", "_base_/cifar10.py"]

model = dict(backbone=dict(frozen=True), head=dict(num_classes=10))

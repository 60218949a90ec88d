"""ResNet-18, frozen, with a new head for CIFAR-10: Adam at 0.001, batches of 100, Pad(4), flip and crop.

    python tools/train.py configs/transfer/tutorial/resnet18_tutorial_cifar10.py --data-root FOLDER

`FOLDER` holds `cifar10_jpg/train` and `cifar10_jpg/test` (or their archive).

Images of 32 pixels, unchanged; 5 epochs.

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["../_base_/resnet18.py", "_base_/cifar10.py"]

model = dict(backbone=dict(frozen=True), head=dict(num_classes=10))

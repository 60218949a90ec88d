"""ResNet-18, frozen, with a new head for ants and bees, as in PyTorch's transfer learning tutorial.

    python tools/train.py configs/transfer/tutorial/resnet18_tutorial_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

Only the head is trained, on random crops, so features are computed in every epoch. BatchNorm uses its published
statistics; the tutorial's follow the batches, though the network is called fixed.

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["../_base_/resnet18.py", "_base_/crops.py", "_base_/sgd.py"]

model = dict(backbone=dict(frozen=True))

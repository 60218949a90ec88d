"""ResNet-18, frozen, as feature extractor for ants and bees: the new head alone is trained.

    python tools/train.py configs/transfer/resnet18_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

Its features are computed in the first epoch and kept, for the images are not changed at random.

Not measured here: its weights are fetched from the network on first use (torchvision, with checksum).
"""

_base_ = ["_base_/resnet18.py", "_base_/fixed.py", "_base_/head.py"]

model = dict(backbone=dict(frozen=True))

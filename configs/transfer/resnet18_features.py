"""ResNet-18, frozen, as feature extractor for ants and bees: only the new head is trained.

    python tools/train.py configs/transfer/resnet18_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

Its features are computed in the first epoch and kept, because the images have no random changes.

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["_base_/resnet18.py", "_base_/fixed.py", "_base_/head.py"]

model = dict(backbone=dict(frozen=True))

"""ResNet-18 fine-tuned to ants and bees: everything is trained, the backbone at a lower learning rate than the head.

    python tools/train.py configs/transfer/resnet18_finetune.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["_base_/resnet18.py", "_base_/augmented.py", "_base_/finetune.py"]

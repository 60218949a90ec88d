"""MobileNetV2 fine-tuned to ants and bees: everything is trained, the backbone at a tenth of the head's rate.

    python tools/train.py configs/transfer/mobilenet_v2_finetune.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

What mattered, on training images that were held out: BatchNorm stays as it is, statistics and weights (see the base
file), and the backbone learns at 0.0003; at 0.001 it fell to chance within two epochs.
"""

_base_ = ["_base_/mobilenet_v2.py", "_base_/augmented.py", "_base_/finetune.py"]

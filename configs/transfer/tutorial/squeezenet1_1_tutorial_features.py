"""SqueezeNet 1.1, frozen, with a new head for ants and bees, as in PyTorch's transfer learning tutorial.

    python tools/train.py configs/transfer/tutorial/squeezenet1_1_tutorial_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/squeezenet1_1_caffe_fp16.pth`.

Only the head is trained, on random crops, so features are computed in every epoch.

Measured: 88.9 % top-1 on the 153 images of `val` after the last epoch (seed 0), in 1.7 minutes of one CPU thread;
`squeezenet1_1_features.py` of the folder above reaches 89.5 %.
"""

_base_ = ["../_base_/squeezenet1_1.py", "_base_/crops.py", "_base_/sgd.py"]

model = dict(backbone=dict(frozen=True))

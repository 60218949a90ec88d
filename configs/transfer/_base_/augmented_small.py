"""Ants and bees, the training images randomly cropped and flipped: 160 pixels of a smaller part.

Objects are about as large in them as in the test images of 224 pixels, and an epoch takes half the time.
"""

_base_ = "fixed.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", size=160, scale=(0.2, 0.8)),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
    dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
data = dict(train=dict(pipeline=train_pipeline))

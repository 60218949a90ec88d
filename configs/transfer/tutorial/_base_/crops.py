"""Ants and bees in batches of 4, randomly cropped and flipped, as in PyTorch's transfer learning tutorial."""

_base_ = "../../_base_/fixed.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", size=224),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
    dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
data = dict(samples_per_gpu=4, train=dict(pipeline=train_pipeline))

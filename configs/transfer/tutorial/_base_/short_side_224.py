"""Ants and bees in batches of 16, random crops of 224 pixels, as in PyTorch's quantized transfer learning.

Test images have 224 pixels on the short side too, and not 256 as in the other tutorial.
"""

_base_ = "../../_base_/fixed.py"

tensors = [
    dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=224),
    dict(type="RandomCrop", size=224),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
    *tensors,
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=224),
    dict(type="CenterCrop", crop_size=224),
    *tensors,
]
data = dict(samples_per_gpu=16, train=dict(pipeline=train_pipeline), val=dict(pipeline=test_pipeline))
calibration_set = dict(type="Hymenoptera", split="train", pipeline=test_pipeline)

"""Ants and bees without random steps: every epoch sees the same images."""

pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=(256, -1)),
    dict(type="CenterCrop", crop_size=224),
    dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
data = dict(
    samples_per_gpu=16,
    workers_per_gpu=0,
    train=dict(type="Hymenoptera", split="train", pipeline=pipeline),
    val=dict(type="Hymenoptera", split="val", pipeline=pipeline),
)
evaluation = dict(interval=1, metric="accuracy")
channels_last = True
seed = 0

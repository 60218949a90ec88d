"""ImageNet (ILSVRC 2012): `train/` and `val/` below the data root, each with one folder per class."""

normalize = dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", size=224),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
    normalize,
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=(256, -1)),
    dict(type="CenterCrop", crop_size=224),
    normalize,
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="Collect", keys=["img"]),
]
data = dict(
    samples_per_gpu=32,
    workers_per_gpu=4,
    train=dict(type="ImageNet", data_prefix="train", pipeline=train_pipeline),
    val=dict(type="ImageNet", data_prefix="val", pipeline=test_pipeline),
    test=dict(type="ImageNet", data_prefix="val", pipeline=test_pipeline),
)
evaluation = dict(interval=1, metric="accuracy")

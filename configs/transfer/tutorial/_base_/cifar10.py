"""CIFAR-10 in batches of 100, padded by 4 pixels, flipped and cut to 32 again; Adam for a frozen network's head."""

tensors = [
    dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Pad", padding=4),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
    dict(type="RandomCrop", size=32),
    *tensors,
]
test_set = dict(
    type="ImageFolder",
    data_prefix="cifar10_jpg/test",
    pipeline=[dict(type="LoadImageFromFile"), *tensors],
    in_memory=True,
)
data = dict(
    samples_per_gpu=100,
    workers_per_gpu=0,
    train=dict(type="ImageFolder", data_prefix="cifar10_jpg/train", pipeline=train_pipeline, in_memory=True),
    val=test_set,
    test=test_set,
)
evaluation = dict(interval=1, metric="accuracy")
optimizer = dict(type="Adam", lr=0.001)
total_epochs = 5
channels_last = True
seed = 0

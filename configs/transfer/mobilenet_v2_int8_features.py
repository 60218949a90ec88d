"""MobileNetV2 as an 8-bit integer feature extractor for ants and bees: a float head is trained on its features.

    python tools/train.py configs/transfer/mobilenet_v2_int8_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

The backbone is quantized with 200 training images and exported on the first run, and kept in `~/.cache/lbitcls`
(extra `deploy`). An engine runs it, without gradients.

Measured: 95.0 % top-1 on the 153 images of `val` after the last epoch (mean of seeds 0, 1, 2), in 20 s of one CPU
thread; an epoch without cached features takes 1.2 s.
"""

_base_ = ["_base_/mobilenet_v2.py", "_base_/fixed.py", "_base_/head.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="IntegerBackbone",
        from_float=dict(type="MobileNetV2"),
        checkpoint="weights/mobilenet_v2_tf2_int8deq_flipw.pth",
        calibration=dict(data={{_base_.data.train}}, num_images=200),
    ),
    head=dict(dropout=0.2),
)

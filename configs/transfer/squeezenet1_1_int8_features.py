"""SqueezeNet 1.1 as an 8-bit integer feature extractor for ants and bees: a float head is trained on its features.

    python tools/train.py configs/transfer/squeezenet1_1_int8_features.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/squeezenet1_1_caffe_fp16.pth`.

The backbone is quantized with 200 training images and exported on the first run, and kept in `~/.cache/lbitcls`
(extra `deploy`). An engine runs it, without gradients.

Measured: 92.8 % top-1 on the 153 images of `val` after the last epoch (seed 0), in 30 s of one CPU thread; an epoch
without cached features takes 1.2 s.
"""

_base_ = ["_base_/squeezenet1_1.py", "_base_/fixed.py", "_base_/head.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="IntegerBackbone",
        from_float=dict(type="SqueezeNet", version="1_1"),
        checkpoint="weights/squeezenet1_1_caffe_fp16.pth",
        calibration=dict(data={{_base_.data.train}}, num_images=200),
    ),
)
optimizer = dict(lr=0.001)

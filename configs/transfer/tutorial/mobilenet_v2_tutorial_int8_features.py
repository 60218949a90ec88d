"""MobileNetV2 as an integer extractor with a new head, as in PyTorch's quantized transfer learning tutorial.

    python tools/train.py configs/transfer/tutorial/mobilenet_v2_tutorial_int8_features.py --data-root FOLDER
    python tools/export.py configs/transfer/tutorial/mobilenet_v2_tutorial_int8_features.py \\
        work_dirs/mobilenet_v2_tutorial_int8_features/latest.pth --out model.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

Quantized here with 200 training images. Dropout of 0.5 before a float head, SGD at 0.01, batches of 16.

Measured: 94.8 % top-1 on the 153 images of `val` after the last epoch (seed 0), in 1.6 minutes of one CPU thread;
`mobilenet_v2_int8_features.py` of the folder above reaches 95.0 %.
"""

_base_ = ["../_base_/mobilenet_v2.py", "_base_/short_side_224.py", "_base_/sgd.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="IntegerBackbone",
        from_float=dict(type="MobileNetV2"),
        checkpoint="weights/mobilenet_v2_tf2_int8deq_flipw.pth",
        calibration=dict(data={{_base_.calibration_set}}, num_images=200),
    ),
    head=dict(dropout=0.5),
)
optimizer = dict(lr=0.01)

"""SqueezeNet 1.1 as an integer extractor with a new head, as in PyTorch's quantized transfer learning tutorial.

    python tools/train.py configs/transfer/tutorial/squeezenet1_1_tutorial_int8_features.py --data-root FOLDER
    python tools/export.py configs/transfer/tutorial/squeezenet1_1_tutorial_int8_features.py \\
        work_dirs/squeezenet1_1_tutorial_int8_features/latest.pth --out model.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/squeezenet1_1_caffe_fp16.pth`.

Quantized here with 200 training images. Dropout of 0.5 before a float head, SGD at 0.01, batches of 16.

Measured: 87.6 % top-1 on the 153 images of `val` after the last epoch (seed 0), in 1.2 minutes of one CPU thread;
`squeezenet1_1_int8_features.py` of the folder above reaches 92.8 %.
"""

_base_ = ["../_base_/squeezenet1_1.py", "_base_/short_side_224.py", "_base_/sgd.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="IntegerBackbone",
        from_float=dict(type="SqueezeNet", version="1_1"),
        checkpoint="weights/squeezenet1_1_caffe_fp16.pth",
        calibration=dict(data={{_base_.calibration_set}}, num_images=200),
    ),
    head=dict(dropout=0.5),
)
optimizer = dict(lr=0.01)

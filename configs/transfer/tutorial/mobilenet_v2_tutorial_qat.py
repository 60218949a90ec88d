"""MobileNetV2 at 8 bits from ImageNet weights: quantization-aware training as in PyTorch's quantized tutorial.

    python tools/train.py configs/transfer/tutorial/mobilenet_v2_tutorial_qat.py --data-root FOLDER
    python tools/export.py configs/transfer/tutorial/mobilenet_v2_tutorial_qat.py \\
        work_dirs/mobilenet_v2_tutorial_qat/latest.pth --out model.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

torch's default QAT configuration, BatchNorm folded, the head float; SGD at 0.001 with weight decay 0.1, 0.3 of the
rate after every 5 of 25 epochs. `export` writes the counterpart of the tutorial's `convert`.

Measured: 71.2 % top-1 on the 153 images of `val` after the last epoch (seed 0), the exported model 69.3 %, in 23
minutes of one CPU thread. After 5, 10, 15 and 20 epochs it has 76.5, 76.5, 85.0 and 77.1 %. `mobilenet_v2_qat.py` of
the folder above reaches 94.1 %.
"""

_base_ = ["../_base_/mobilenet_v2.py", "_base_/short_side_224.py", "_base_/qat.py"]

model = dict(backbone=dict(norm_cfg=dict(requires_grad=True), norm_eval=False))

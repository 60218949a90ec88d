"""SqueezeNet 1.1 at 8 bits from ImageNet weights: quantization-aware training as in PyTorch's quantized tutorial.

    python tools/train.py configs/transfer/tutorial/squeezenet1_1_tutorial_qat.py --data-root FOLDER
    python tools/export.py configs/transfer/tutorial/squeezenet1_1_tutorial_qat.py \\
        work_dirs/squeezenet1_1_tutorial_qat/latest.pth --out model.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/squeezenet1_1_caffe_fp16.pth`.

torch's default QAT configuration, the head float; SGD at 0.001 with weight decay 0.1, 0.3 of the rate after every 5 of
25 epochs. `export` writes the counterpart of the tutorial's `convert`.

Measured: 89.5 % top-1 on the 153 images of `val` after the last epoch (seed 0), the exported model 90.2 %, in 6.0
minutes of one CPU thread; `squeezenet1_1_qat.py` of the folder above reaches 91.5 %.
"""

_base_ = ["../_base_/squeezenet1_1.py", "_base_/short_side_224.py", "_base_/qat.py"]

quant_transformer = dict(exclude_layers=["head.conv"])

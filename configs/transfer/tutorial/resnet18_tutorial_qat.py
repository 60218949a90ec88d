"""ResNet-18 at 8 bits from ImageNet weights: quantization-aware training as in PyTorch's quantized tutorial.

    python tools/train.py configs/transfer/tutorial/resnet18_tutorial_qat.py --data-root FOLDER
    python tools/export.py configs/transfer/tutorial/resnet18_tutorial_qat.py \\
        work_dirs/resnet18_tutorial_qat/latest.pth --out model.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

torch's default QAT configuration, BatchNorm folded, the head float; SGD at 0.001 with weight decay 0.1, 0.3 of the
rate after every 5 of 25 epochs. `export` writes the counterpart of the tutorial's `convert`.

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["../_base_/resnet18.py", "_base_/short_side_224.py", "_base_/qat.py"]

model = dict(backbone=dict(norm_cfg=dict(requires_grad=True), norm_eval=False))

"""ResNet-18 as an integer extractor with a new head, as in PyTorch's quantized transfer learning tutorial.

    python tools/train.py configs/transfer/tutorial/resnet18_tutorial_int8_features.py --data-root FOLDER
    python tools/export.py configs/transfer/tutorial/resnet18_tutorial_int8_features.py \\
        work_dirs/resnet18_tutorial_int8_features/latest.pth --out model.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

torchvision's published integers. Dropout of 0.5 before a float head, SGD at 0.01, batches of 16.

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["../_base_/resnet18.py", "_base_/short_side_224.py", "_base_/sgd.py"]

model = dict(
    backbone=dict(_delete_=True, type="TorchvisionQuantizedBackbone", name="resnet18"),
    head=dict(dropout=0.5),
)
optimizer = dict(lr=0.01)

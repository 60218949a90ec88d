"""ResNet-18 for ants and bees at 4 bits (first and last layers 8): LSQ, from the fine-tuned float model.

    python tools/train.py configs/transfer/resnet18_finetune.py --data-root FOLDER
    python tools/train.py configs/transfer/resnet18_lsq_4w4f.py --data-root FOLDER
    python tools/export.py configs/transfer/resnet18_lsq_4w4f.py work_dirs/resnet18_lsq_4w4f/latest.pth \\
        --out resnet18_lsq_4w4f.onnx --data-root FOLDER
    python tools/test.py configs/transfer/resnet18_lsq_4w4f.py resnet18_lsq_4w4f.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["_base_/resnet18.py", "_base_/augmented.py", "_base_/lsq_4w4f.py"]

ends = dict(num_bit_w=8, num_bit_a=8, per_channel=True)
quant_transformer = dict(
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[dict(type="LSQConv", **ends), dict(type="LSQLinear", **ends)],
    ),
)
load_from = "work_dirs/resnet18_finetune/latest.pth"

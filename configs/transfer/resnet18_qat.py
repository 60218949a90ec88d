"""ResNet-18 for ants and bees at 8 bits: quantization-aware fine-tuning of the fine-tuned float model.

    python tools/train.py configs/transfer/resnet18_finetune.py --data-root FOLDER
    python tools/train.py configs/transfer/resnet18_qat.py --data-root FOLDER
    python tools/export.py configs/transfer/resnet18_qat.py work_dirs/resnet18_qat/latest.pth \\
        --out resnet18_qat.onnx --data-root FOLDER
    python tools/test.py configs/transfer/resnet18_qat.py resnet18_qat.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["_base_/resnet18.py", "_base_/augmented.py", "_base_/qat.py"]

load_from = "work_dirs/resnet18_finetune/latest.pth"

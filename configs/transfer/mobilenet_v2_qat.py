"""MobileNetV2 for ants and bees at 8 bits: quantization-aware fine-tuning of the fine-tuned float model.

    python tools/train.py configs/transfer/mobilenet_v2_finetune.py --data-root FOLDER
    python tools/train.py configs/transfer/mobilenet_v2_qat.py --data-root FOLDER
    python tools/export.py configs/transfer/mobilenet_v2_qat.py work_dirs/mobilenet_v2_qat/latest.pth \\
        --out mobilenet_v2_qat.onnx --data-root FOLDER
    python tools/test.py configs/transfer/mobilenet_v2_qat.py mobilenet_v2_qat.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

Measured: 94.1 % top-1 on the 153 images of `val` after the last epoch (mean of seeds 0, 1, 2), the exported model
94.6 %, in 2 minutes of one CPU thread.
"""

_base_ = ["_base_/mobilenet_v2.py", "_base_/augmented.py", "_base_/qat.py"]

load_from = "work_dirs/mobilenet_v2_finetune/latest.pth"

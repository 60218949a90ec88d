"""SqueezeNet 1.1 for ants and bees at 8 bits: quantization-aware fine-tuning of the fine-tuned float model.

    python tools/train.py configs/transfer/squeezenet1_1_finetune.py --data-root FOLDER
    python tools/train.py configs/transfer/squeezenet1_1_qat.py --data-root FOLDER
    python tools/export.py configs/transfer/squeezenet1_1_qat.py work_dirs/squeezenet1_1_qat/latest.pth \\
        --out squeezenet1_1_qat.onnx --data-root FOLDER
    python tools/test.py configs/transfer/squeezenet1_1_qat.py squeezenet1_1_qat.onnx --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/squeezenet1_1_caffe_fp16.pth`.

Measured: 91.5 % top-1 on the 153 images of `val` after the last epoch (seed 0), the exported model 91.5 %, in 30 s of
one CPU thread.
"""

_base_ = ["_base_/squeezenet1_1.py", "_base_/augmented_small.py", "_base_/qat.py"]

load_from = "work_dirs/squeezenet1_1_finetune/latest.pth"

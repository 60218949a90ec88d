"""SqueezeNet 1.1 fine-tuned to ants and bees: everything is trained, the backbone at a tenth of the head's rate.

    python tools/train.py configs/transfer/squeezenet1_1_finetune.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/squeezenet1_1_caffe_fp16.pth`.

Measured: 92.2 % top-1 on the 153 images of `val` (seed 0), about 2 minutes on one thread of a shared machine.
"""

_base_ = ["_base_/squeezenet1_1.py", "_base_/augmented.py", "_base_/finetune.py"]

optimizer = dict(lr=0.001)

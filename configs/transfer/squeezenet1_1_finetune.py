"""SqueezeNet 1.1 fine-tuned to ants and bees: everything is trained, the backbone slower than the head.

    python tools/train.py configs/transfer/squeezenet1_1_finetune.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/squeezenet1_1_caffe_fp16.pth`.

Images have 160 pixels a side: half as many as with 224, in half the time.

Measured: 92.2 % top-1 on the 153 images of `val` after the last epoch (seed 0), in 2 minutes of one CPU thread.
"""

_base_ = ["_base_/squeezenet1_1.py", "_base_/augmented_small.py", "_base_/finetune.py"]

optimizer = dict(
    _delete_=True,
    type="SGD",
    lr=0.001,
    momentum=0.9,
    weight_decay=1e-4,
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)

"""MobileNetV2 fine-tuned to ants and bees as in PyTorch's transfer learning tutorial.

    python tools/train.py configs/transfer/tutorial/mobilenet_v2_tutorial_finetune.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive) and `weights/mobilenet_v2_tf2_int8deq_flipw.pth`.

SGD at 0.001 for everything, momentum 0.9, batches of 4, a tenth of the rate after every 7 of 25 epochs. BatchNorm
learns, statistics and weights.

Measured: 89.5 % top-1 on the 153 images of `val` after the last epoch (seed 0), in 11.1 minutes of one CPU thread;
`mobilenet_v2_finetune.py` of the folder above reaches 94.1 %.
"""

_base_ = ["../_base_/mobilenet_v2.py", "_base_/crops.py", "_base_/sgd.py"]

model = dict(backbone=dict(norm_cfg=dict(requires_grad=True), norm_eval=False))

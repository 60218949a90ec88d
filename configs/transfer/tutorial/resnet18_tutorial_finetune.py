"""ResNet-18 fine-tuned to ants and bees as in PyTorch's transfer learning tutorial.

    python tools/train.py configs/transfer/tutorial/resnet18_tutorial_finetune.py --data-root FOLDER

`FOLDER` holds `hymenoptera_256` (or its archive).

SGD at 0.001 for everything, momentum 0.9, batches of 4, a tenth of the rate after every 7 of 25 epochs. BatchNorm
learns, statistics and weights.

Not measured here: its weights are downloaded on first use (torchvision, with checksum).
"""

_base_ = ["../_base_/resnet18.py", "_base_/crops.py", "_base_/sgd.py"]

model = dict(backbone=dict(norm_cfg=dict(requires_grad=True), norm_eval=False))

"""The project's own short fine-tuning at 8 bits: SGD from 0.001, cosine decay, 10 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.001, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False)
total_epochs = 10

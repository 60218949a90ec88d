"""LSQ's fine-tuning at 2 to 4 bits: SGD from 0.01, cosine decay without restarts, 90 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False)
total_epochs = 90

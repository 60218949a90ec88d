"""The original project's fine-tuning with cosine decay: 500 iterations of warmup, 120 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, warmup="linear", warmup_iters=500, warmup_ratio=0.25)
total_epochs = 120

"""Fine-tuning of ResNet-20 with LSQ, as a user of hustzxd/LSQuantization did: cosine from 0.2, 90 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.2, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False)
total_epochs = 90

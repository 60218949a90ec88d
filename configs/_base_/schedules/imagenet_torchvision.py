"""torchvision's reference training: SGD from 0.1, a tenth every 30 epochs, 90 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="step", step=30, gamma=0.1)
total_epochs = 90

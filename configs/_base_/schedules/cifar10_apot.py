"""The APoT authors' fine-tuning of ResNet-20: SGD from 0.04, a tenth at epochs 150 and 225, 300 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.04, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="step", step=[150, 225], gamma=0.1)
total_epochs = 300

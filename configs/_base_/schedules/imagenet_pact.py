"""PACT's training from the first step: SGD from 0.1, a tenth at epochs 30, 60, 85 and 95, 110 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="step", step=[30, 60, 85, 95], gamma=0.1)
total_epochs = 110

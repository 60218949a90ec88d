"""PACT's training of ResNet-20 from the first step: SGD from 0.1, a tenth at epochs 60 and 120, 200 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=2e-4)
lr_config = dict(policy="step", step=[60, 120], gamma=0.1)
total_epochs = 200

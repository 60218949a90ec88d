"""A tenth of the rate at epochs 30, 60 and 90, 100 epochs: the APoT authors' schedule, and the original's for DSQ."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="step", step=[30, 60, 90], gamma=0.1)
total_epochs = 100

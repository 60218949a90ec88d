"""The original project's fine-tuning with LSQ+: a tenth of the rate every 20 epochs, 110 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="step", step=[20, 40, 60, 80, 100], gamma=0.1)
total_epochs = 110

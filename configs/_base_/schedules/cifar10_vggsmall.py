"""VGG-small as in LQ-Nets: SGD from 0.02, a tenth at epochs 80, 160 and 300, 400 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=5e-4)
lr_config = dict(policy="step", step=[80, 160, 300], gamma=0.1)
total_epochs = 400

"""ResNet-20 in float: SGD from 0.1, a tenth at epochs 100 and 150, 200 epochs."""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
lr_config = dict(policy="step", step=[100, 150], gamma=0.1)
total_epochs = 200

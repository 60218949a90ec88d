"""Distiller's training of ResNet-20 with DoReFa from the first step: SGD from 0.1, 200 epochs.

Its rate falls to a tenth at epochs 80 and 120 and to a fifth at 160; here to a tenth at all three.
"""

_base_ = "../runtime.py"

optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=2e-4)
lr_config = dict(policy="step", step=[80, 120, 160], gamma=0.1)
total_epochs = 200

"""The N2UQ authors' training: Adam from 0.00125, linear to 0, 128 epochs, batches of 256 (8 GPUs), no weight decay."""

_base_ = "../runtime.py"

optimizer = dict(type="Adam", lr=0.00125)
lr_config = dict(policy="poly", power=1.0, min_lr=0.0, by_epoch=True)
total_epochs = 128

"""`plain.py` whose scales have a tenth of the learning rate."""

_base_ = "plain.py"

optimizer = dict(paramwise_cfg=dict(quantizers=dict(lr_mult=0.1)))

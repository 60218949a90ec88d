"""`plain.py` with the weight decay of 2 bits in APoT's paper."""

_base_ = "plain.py"

optimizer = dict(paramwise_cfg=dict(decay_by_bits={2: 3e-5}))

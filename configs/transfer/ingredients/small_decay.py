"""`mobilenet_v2_lsq_4w4f.py` with a tenth of the weight decay.

For its accuracy see docs/results/transfer_ingredients.md.
"""

_base_ = "../mobilenet_v2_lsq_4w4f.py"

optimizer = dict(paramwise_cfg=dict(decay_by_bits={4: 0.001}))

"""`mobilenet_v2_lsq_4w4f.py` whose scales have a tenth of the learning rate.

For its accuracy see docs/results/transfer_ingredients.md.
"""

_base_ = "../mobilenet_v2_lsq_4w4f.py"

optimizer = dict(paramwise_cfg=dict(quantizers=dict(lr_mult=0.1)))

"""`mobilenet_v2_lsq_4w4f.py` with normalized weights.

For its accuracy see docs/results/transfer_ingredients.md.
"""

_base_ = "../mobilenet_v2_lsq_4w4f.py"

quant_transformer = dict(quan_policy=dict(Conv2d=dict(weight_norm=True)))

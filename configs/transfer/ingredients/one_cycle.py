"""`mobilenet_v2_lsq_4w4f.py` with a one-cycle learning rate.

For its accuracy see docs/results/transfer_ingredients.md.
"""

_base_ = "../mobilenet_v2_lsq_4w4f.py"

lr_config = dict(_delete_=True, policy="OneCycle", pct_start=0.3)
optimizer = dict(lr=0.0008)

"""`mobilenet_v2_lsq_4w4f.py` that freezes oscillating weights.

For its accuracy see docs/results/transfer_ingredients.md.
"""

_base_ = "../mobilenet_v2_lsq_4w4f.py"

custom_hooks = [dict(type="FreezeOscillationsHook", threshold=[0.04, 0.01])]

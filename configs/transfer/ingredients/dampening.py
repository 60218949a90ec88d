"""`mobilenet_v2_lsq_4w4f.py` that dampens oscillations.

For its accuracy see docs/results/transfer_ingredients.md.
"""

_base_ = "../mobilenet_v2_lsq_4w4f.py"

custom_hooks = [dict(type="DampenOscillationsHook", weight=[0, 0.01])]

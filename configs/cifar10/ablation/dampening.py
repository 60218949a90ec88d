"""`plain.py` that dampens oscillations."""

_base_ = "plain.py"

custom_hooks = [dict(type="DampenOscillationsHook", weight=[0, 0.01])]

"""`plain.py` that freezes oscillating weights."""

_base_ = "plain.py"

custom_hooks = [dict(type="FreezeOscillationsHook", threshold=[0.04, 0.01])]

"""`plain.py` with normalized weights."""

_base_ = "plain.py"

quant_transformer = dict(quan_policy=dict(Conv2d=dict(weight_norm=True)))

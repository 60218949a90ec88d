"""`plain.py` with a one-cycle learning rate."""

_base_ = "plain.py"

lr_config = dict(_delete_=True, policy="OneCycle", pct_start=0.3)
optimizer = dict(lr=0.04)

"""`plain.py` whose first steps have the least squared error."""

_base_ = "plain.py"

calibration = dict(method="mse")

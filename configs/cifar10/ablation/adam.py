"""`plain.py` with Adam."""

_base_ = "plain.py"

optimizer = dict(_delete_=True, type="Adam", lr=0.001)

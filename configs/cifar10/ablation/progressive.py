"""`plain.py` whose bits go down, an epoch each at 4 and 3 bits, with ranges that are kept."""

_base_ = "plain.py"

progressive = dict(bits=[4, 3, 2], epochs=[1, 1], ranges="keep")

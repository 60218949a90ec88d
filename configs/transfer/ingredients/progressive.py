"""`mobilenet_v2_lsq_4w4f.py` whose bits go down, three epochs each at 8 and 6 bits.

For its accuracy see docs/results/transfer_ingredients.md.
"""

_base_ = "../mobilenet_v2_lsq_4w4f.py"

progressive = dict(bits=[8, 6, 4], epochs=[3, 3], ranges="new")

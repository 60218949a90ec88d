"""`mobilenet_v2_lsq_4w4f.py` validated as its moving average.

For its accuracy see docs/results/transfer_ingredients.md.
"""

_base_ = "../mobilenet_v2_lsq_4w4f.py"

ema = dict(decay=0.98, bn_batches=16)

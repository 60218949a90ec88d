"""`plain.py` validated as its moving average."""

_base_ = "plain.py"

ema = dict(decay=0.999, bn_batches=100)

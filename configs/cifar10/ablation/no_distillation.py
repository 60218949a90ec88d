"""`all.py` that learns from labels."""

_base_ = "all.py"

distill = None

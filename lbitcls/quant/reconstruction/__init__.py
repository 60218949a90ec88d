"""Learned rounding without labels: AdaRound, blocks with QDrop, bias correction, equalization."""

"""Learned rounding without labels: AdaRound by layer, block reconstruction with QDrop, bias correction, equalization."""

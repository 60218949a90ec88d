"""Backbones: torchvision's networks behind the tutorial's keys, and the small ones that it lacks."""

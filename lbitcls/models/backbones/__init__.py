"""Backbones: torchvision's networks under the tutorial's keys, and small ones that torchvision lacks."""

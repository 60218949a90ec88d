"""Whole jobs as Python functions that take a config: train, test, calibrate, export, compare, … behind the commands."""

"""Devices that exported models are made for, a file each: what they take and how a graph is shaped for them."""

"""Devices that exported models are made for: what they can take and how a graph is shaped for them."""

"""Deployment targets, one file each: what a target supports and how a graph is shaped for it."""

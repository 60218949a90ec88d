"""Quantization methods: one file each, registered at the end of the file."""

"""The quantization methods: one file each, registered at its foot."""

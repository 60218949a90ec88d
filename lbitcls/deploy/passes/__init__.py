"""Editable ONNX graph and the passes over it, from which the exporter and the targets are built."""

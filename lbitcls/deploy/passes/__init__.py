"""The ONNX graph while it is being changed, and passes over it: what exporter and targets are made of."""

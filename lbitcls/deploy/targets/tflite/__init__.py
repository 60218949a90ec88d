"""Writer of TFLite files: an ONNX graph with QuantizeLinear and DequantizeLinear nodes becomes integer operations."""

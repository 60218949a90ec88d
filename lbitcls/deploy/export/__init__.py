"""Export of a trained model to an ONNX file with integer weights."""

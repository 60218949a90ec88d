"""Records of a run: TensorBoard, pictures, the first and the last lines of its log, its summary."""

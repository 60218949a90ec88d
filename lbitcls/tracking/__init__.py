"""Records of a run: TensorBoard, figures, first and last lines of the log, summary."""

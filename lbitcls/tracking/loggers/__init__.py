"""Loggers of `log_config.hooks` beside the text log and TensorBoard: a table, MLflow, Weights & Biases."""

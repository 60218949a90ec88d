"""Analysis of models and runs: figures of images, predictions, errors and curves, and comparison of models."""

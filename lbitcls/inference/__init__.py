"""Predictions for single images, by a checkpoint's model or an exported file."""

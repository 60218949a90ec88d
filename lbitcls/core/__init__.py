"""Training: epoch runner, hooks, optimizer, learning rate, validation."""

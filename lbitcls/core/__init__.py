"""Training: the epoch runner, its hooks, optimizer, learning rate, validation."""

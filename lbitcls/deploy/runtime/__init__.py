"""Running exported models: engines, metadata, timing."""

"""Exported models at work: engines, metadata of files, timing."""

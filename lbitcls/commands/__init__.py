"""Command line: one file per verb, with its options and a thin `run`."""

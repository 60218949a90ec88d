"""Proof that an exported model computes what was trained."""

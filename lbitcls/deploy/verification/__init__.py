"""Verification that an exported model computes what was trained."""

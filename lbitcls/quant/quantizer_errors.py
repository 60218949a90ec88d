"""Errors of quantizers."""

from __future__ import annotations

from lbitcls.utils.errors import LbitclsError


class NotInitializedError(LbitclsError):
    """A quantizer is used in eval before it has seen data."""


class ScaleError(LbitclsError):
    """A quantizer's scale is not finite, or not positive."""

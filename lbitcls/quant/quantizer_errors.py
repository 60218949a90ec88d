"""Errors of quantizers."""

from __future__ import annotations

from torch import Tensor

from lbitcls.utils.errors import DataError, LbitclsError


class NotInitializedError(LbitclsError):
    """A quantizer is used in eval before it has seen data."""


class ScaleError(LbitclsError):
    """A quantizer's scale is not finite, or not positive."""


def require_finite(x: Tensor, quantizer: str, what: str, role: str) -> None:
    """Raise `DataError`, that `quantizer` cannot be initialized, if a value of `x` is not finite."""
    finite = x.detach().isfinite()
    if not finite.all():
        cause = "weights of a run that diverged" if role == "weight" else "an image, or weights that diverged"
        raise DataError(
            f"{quantizer} cannot be initialized: {what} {int((~finite).sum())} of {x.numel()} values that are NaN or "
            f"infinite. Check for {cause}."
        )

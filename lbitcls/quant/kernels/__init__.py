"""Functions that run a quantizer's formula with a custom backward pass, in one of several kinds of kernels."""

from lbitcls.quant.kernels.elementwise import Elementwise
from lbitcls.quant.kernels.selection import KINDS, active_kind, describe_kernels, select_kernels

__all__ = ["KINDS", "Elementwise", "active_kind", "describe_kernels", "select_kernels"]

"""Selection of kernels, once per process, because their step gradients differ in the last bits.

`plain`: PyTorch's operators. `fused`: each formula compiled by inductor into one pass over memory, which needs a C++
compiler (CPU) or Triton (GPU). Forward values are bit-equal in both.

The runner calls `select_kernels` when it starts. If nothing has been selected, the first quantizer that needs a
gradient selects `auto`. Until then `plain` kernels run, so a process that never trains compiles nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lbitcls.utils.errors import ConfigError, DependencyError, suggest
from lbitcls.utils.logging import get_logger

KINDS = ("plain", "fused")
_active: str | None = None  # None: not selected yet


def active_kind() -> str:
    """Return the kind of kernels in use."""
    return _active or "plain"


def fused_now() -> bool:
    """Return True if fused kernels run: not in a compiled or traced model, which sees the `plain` formulas."""
    return not torch.compiler.is_compiling() and active_kind() == "fused" and not torch.jit.is_tracing()


def select_at_first_use(device: torch.device) -> None:
    """Select `auto` unless kernels are already selected; called where a gradient is needed."""
    if _active is None and device.type != "meta":
        kind = select_kernels("auto", device)
        reason = "" if can_compile(device.type) else f": fused kernels need {_needs(device.type)}"
        get_logger().info("Quantizers run %s kernels%s. To change them, call select_kernels().", kind, reason)


def select_kernels(kind: str = "auto", device: str | torch.device = "cpu") -> str:
    """Select the kernels of this process.

    Without a call, `auto` is selected when a quantizer first needs a gradient.

    Args:
        kind: `plain`, `fused`, or `auto`: `fused` if a test formula compiles for `device`, else `plain`.
        device: Device that the model runs on.

    Returns:
        Selected kind.

    Raises:
        ConfigError: The kind is unknown.
        DependencyError: `fused` was requested, but there is no compiler.
    """
    global _active
    if kind not in ("auto", *KINDS):
        raise ConfigError(f"kernels must be auto, {', '.join(KINDS)}; got '{kind}'{suggest(kind, KINDS)}")
    compiles = can_compile(torch.device(device).type)
    if kind == "fused" and not compiles:
        raise DependencyError(
            f"kernels='fused' compiles for {device} and needs {_needs(torch.device(device).type)}; "
            "install it, or use kernels='plain'."
        )
    if kind == "auto":
        kind = "fused" if compiles and _first_formula_compiles(device) else "plain"
    _active = kind
    return kind


@contextmanager
def restored_kernels() -> Iterator[None]:
    """Restore the selection of kernels afterwards, also the state before any selection."""
    global _active
    before = _active
    try:
        yield
    finally:
        _active = before


def _first_formula_compiles(device: str | torch.device) -> bool:
    """Return True if the compiler works; otherwise log a warning with the reason."""
    try:
        with torch.no_grad():
            torch.compile(_first_formula, dynamic=True)(torch.ones(2, device=device))
    except Exception as error:  # any error of a broken compiler, missing headers or a full cache folder
        said = str(error).strip().partition("\n")[0]
        get_logger().warning("Quantizers run plain kernels: compiling for %s failed (%s).", device, said)
        return False
    return True


def _first_formula(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def _needs(device_type: str) -> str:
    return (
        "Triton (pip install triton)"
        if device_type == "cuda"
        else "a C++ compiler (g++ or clang++, or CXX) and Python's headers (python3-dev)"
    )


@functools.lru_cache
def can_compile(device_type: str) -> bool:
    """Return True if inductor finds what it needs to compile for a device."""
    if device_type == "cuda":
        return importlib.util.find_spec("triton") is not None
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    headers = Path(sysconfig.get_path("include"), "Python.h")  # inductor wraps its kernels for Python
    return headers.is_file() and any(shutil.which(name) for name in names)

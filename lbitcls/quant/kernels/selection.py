"""Which kernels run: chosen once for a process, since their step gradients differ in the last bits.

`plain`: PyTorch's operators. `fused`: each formula compiled by inductor into one pass over memory, which needs a C++
compiler (CPU) or Triton (GPU). Forward values are bit-equal in both.

The runner calls `select_kernels` when it starts. Where nobody did, the first quantizer that needs a gradient selects
`auto`. Until then `plain` kernels run, so a process that never trains compiles nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from lbitcls.utils.errors import ConfigError, DependencyError, suggest
from lbitcls.utils.logging import get_logger

KINDS = ("plain", "fused")
_active: str | None = None  # None: not selected yet


def active_kind() -> str:
    """The kind of kernels in use."""
    return _active or "plain"


def fused_now() -> bool:
    """Whether fused kernels run here: not in a compiled model, nor in a traced one, where `plain` formulas are seen."""
    return not torch.compiler.is_compiling() and active_kind() == "fused" and not torch.jit.is_tracing()


def select_at_first_use(device: torch.device) -> None:
    """Select `auto`, unless kernels are selected already; called where a gradient is needed."""
    if _active is None and device.type != "meta":
        kind = select_kernels("auto", device)
        reason = "" if can_compile(device.type) else f": fused ones need {_needs(device.type)}"
        get_logger().info("Quantizers run %s kernels%s. select_kernels() chooses others.", kind, reason)


def select_kernels(kind: str = "auto", device: str | torch.device = "cpu") -> str:
    """Choose the kernels of this process.

    Without a call `auto` is chosen when a quantizer first needs a gradient.

    Args:
        kind: `plain`, `fused`, or `auto`: `fused` where a first formula compiles for `device`.
        device: where the model runs.

    Returns:
        The kind chosen.

    Raises:
        ConfigError: an unknown kind.
        DependencyError: `fused` where there is no compiler.
    """
    global _active
    if kind not in ("auto", *KINDS):
        raise ConfigError(f"kernels are auto, {', '.join(KINDS)}; got '{kind}'{suggest(kind, KINDS)}")
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


def _first_formula_compiles(device: str | torch.device) -> bool:
    """Whether the compiler that is there works; a warning says why it does not."""
    try:
        with torch.no_grad():
            torch.compile(_first_formula, dynamic=True)(torch.ones(2, device=device))
    except Exception as error:  # whatever a broken compiler, missing headers or a full cache folder raise
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
    """Whether inductor finds what it needs to compile for a device."""
    if device_type == "cuda":
        return importlib.util.find_spec("triton") is not None
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    headers = Path(sysconfig.get_path("include"), "Python.h")  # inductor wraps its kernels for Python
    return headers.is_file() and any(shutil.which(name) for name in names)

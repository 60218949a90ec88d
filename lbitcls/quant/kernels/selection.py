"""Selection of kernels, once per process, because their step gradients differ in the last bits.

`plain`: PyTorch's operators. `fused`: each formula compiled by inductor into one pass over memory, which needs a C++
compiler (CPU) or Triton (GPU). Forward values are bit-equal in both. `integer`: fused, and layers multiply 8-bit
integers in training (`kernels.integer_step`), where the product is exact; on a CPU. The products of its backward pass
run in float32, or in fewer bits (`kernels.product_gradients`): `integer-bf16`, `integer-int8`. `auto`: the best that
the machine runs: `integer` where a CPU multiplies integers exactly and faster than floats, else `fused`, else `plain`.

The runner calls `select_kernels` when it starts. If nothing has been selected, the first quantized layer that needs a
gradient selects `auto`. Until then `plain` kernels run, so a process that never trains compiles nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lbitcls.quant.kernels import machine, native
from lbitcls.utils.errors import ConfigError, DependencyError, suggest
from lbitcls.utils.logging import get_logger

KINDS = ("plain", "fused", "integer")
GRADIENTS = ("float32", "bf16", "int8")
EXACT_DIVISION = ("eager_numerics.division_rounding", "emulate_division_rounding")
"""Names of inductor's option, by PyTorch's version."""
_TRACING = [getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")]
_active: str | None = None  # None: not selected yet
_gradients = "float32"
_why_simulated = ""  # reason why `auto` does not choose integers
COMPILED = "in a compiled model they are not always faster than floats"
AUTOCAST = "under autocast they are not faster than floats"


def active_kind() -> str:
    """Return the kind of kernels in use."""
    return _active or "plain"


def is_open() -> bool:
    """Return True if no kernels have been selected yet."""
    return _active is None


def active_gradients() -> str:
    """Return the type in which the products of the backward pass of integer kernels run: one of `GRADIENTS`."""
    return _gradients


def is_traced() -> bool:
    """Return True if PyTorch records operators to export or rewrite them, or if tensors have no values (fake ones)."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    if torch.jit.is_tracing():
        return True
    modes = torch._C._len_torch_dispatch_stack()  # usually none
    return modes > 0 and any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING)


def fused_now() -> bool:
    """Return True if fused kernels run: not in a compiled or traced model, which sees the `plain` formulas."""
    return active_kind() != "plain" and not torch.compiler.is_compiling() and not is_traced()


def integer_now() -> bool:
    """Return True if layers that can multiply integers do so, also in a compiled model, but not in a traced one."""
    return active_kind() == "integer" and not is_traced()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled by inductor, for any sizes, with divisions rounded as PyTorch's operators round them.

    Triton's own division is off by up to 2 ulp: a quotient at a tie would become another integer.
    """
    from torch._inductor import config

    known = config.get_config_copy()
    return torch.compile(function, dynamic=True, options={name: True for name in EXACT_DIVISION if name in known})


def fusible(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of tensors to run compiled, for any sizes, when fused kernels run."""
    made: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if not fused_now():
            return function(*args)
        if not made:  # importing inductor takes seconds
            made.append(compiled(function))
        return made[0](*args)

    return run


@torch._dynamo.assume_constant_result  # a traced model asks once, when it is traced
def select_at_first_use(device_type: str) -> None:
    """Select `auto` unless kernels are already selected; called where a gradient is needed."""
    if _active is None and device_type != "meta" and not is_traced():
        select_kernels("auto", device_type, why_simulated=_of_this_call(device_type))
        get_logger().info("%s To change them, call select_kernels().", describe_kernels(device_type))


def _of_this_call(device_type: str) -> str:
    """Return the reason why the call that runs is faster with fused kernels than with integer ones, or ""."""
    if torch.compiler.is_compiling():
        return COMPILED
    return AUTOCAST if torch.is_autocast_enabled(device_type) else ""


def select_kernels(
    kind: str = "auto",
    device: str | torch.device = "cpu",
    gradients: str | None = None,
    *,
    why_simulated: str = "",
) -> str:
    """Select the kernels of this process.

    Without a call, `auto` is selected when a quantized layer first needs a gradient.

    Args:
        kind: `plain`, `fused`, `integer`, or `auto`: `plain` unless a test formula compiles for `device`; `integer` if
            the machine also multiplies integers exactly there, and faster than floats; else `fused`. Also a name that
            this function has returned, such as `integer-int8`.
        device: Device that the model runs on.
        gradients: Type in which the products of the backward pass of `integer` run: `float32` (default), `bf16`,
            `int8`.
        why_simulated: Reason why `auto` shall not choose integer kernels.

    Returns:
        Name of the selection: its kind, and its gradients if they are not float32, as in `integer-bf16`.

    Raises:
        ConfigError: The kind or type is unknown, or gradients in fewer bits are asked of another kind than `integer`,
            or others than those that the name contains.
        DependencyError: `fused` or `integer` was requested, but there is no compiler, or the machine does not multiply
            integers exactly.
    """
    global _active, _gradients, _why_simulated
    device, _why_simulated = torch.device(device), why_simulated
    kind, gradients = parse_kernels(kind, gradients)
    check_kernels(kind, device)
    if kind == "auto":
        kind = _best(device)
    _active, _gradients = kind, gradients
    return kernels_name(kind, gradients)


def parse_kernels(name: str, gradients: str | None = None) -> tuple[str, str]:
    """Return the kind and the gradients that a name such as `integer-int8` stands for.

    Raises:
        ConfigError: As in `select_kernels`.
    """
    kind, _, named = name.partition("-")
    if named and gradients not in (None, named):
        raise ConfigError(f"kernels='{name}' and gradients='{gradients}' contradict each other; give one of them.")
    gradients = gradients or named or "float32"
    _check_names(kind, gradients)
    return kind, gradients


def kernels_name(kind: str, gradients: str) -> str:
    """Return the name of kernels: their kind, and their gradients if they are not float32."""
    return kind if gradients == "float32" else f"{kind}-{gradients}"


def check_kernels(kind: str, device: torch.device) -> None:
    """Raise `DependencyError` if this machine cannot run a kind of kernels on `device`; compiles nothing."""
    if kind in ("fused", "integer") and not can_compile(device.type):
        raise DependencyError(
            f"kernels='{kind}' compiles for {device} and needs {_needs(device.type)}; "
            "install it, or use kernels='plain'."
        )
    if kind == "integer" and (reason := why_no_integers(device.type)):
        raise DependencyError(f"kernels='integer' cannot run: {reason}. Use kernels='fused'.")


def _check_names(kind: str, gradients: str) -> None:
    if kind not in ("auto", *KINDS):
        raise ConfigError(f"kernels must be auto, {', '.join(KINDS)}; got '{kind}'{suggest(kind, KINDS)}")
    if gradients not in GRADIENTS:
        raise ConfigError(
            f"gradients of kernels must be {', '.join(GRADIENTS)}; got '{gradients}'{suggest(gradients, GRADIENTS)}"
        )
    if gradients != "float32" and kind != "integer":
        raise ConfigError(f"gradients='{gradients}' needs kernels of kind 'integer'; got kind '{kind}'.")


def _best(device: torch.device) -> str:
    if not can_compile(device.type) or not _first_formula_compiles(device):
        return "plain"
    return "fused" if _why_fused(device.type) else "integer"


def _why_fused(device_type: str) -> str:
    """Return the reason why fused kernels are better on such a device than integer ones, or ""."""
    slow = "they are not faster than floats here"
    return why_no_integers(device_type) or _why_simulated or ("" if _integers_are_fast() else slow)


def _integers_are_fast() -> bool:
    with torch.autocast("cpu", enabled=False):  # the first layer may ask under autocast, but the answer is kept
        return machine.integers_are_fast()


def why_no_integers(device_type: str) -> str:
    """Return the reason why layers on such a device cannot multiply integers, or ""."""
    if device_type != "cpu":
        return f"integer products run on the CPU, not on {device_type}"
    return machine.find_obstacle()


def describe_kernels(device_type: str) -> str:
    """Return the sentence that logs say of the selected kernels, with the reason."""
    kind = active_kind()
    if kind == "plain":
        reason = "" if can_compile(device_type) else f": fused kernels need {_needs(device_type)}"
        return f"Quantizers run plain kernels{reason}."
    if kind == "fused":
        reason = _why_fused(device_type)
        if not reason:
            return "Quantizers run fused kernels; kernels='integer' trains in integers, which are faster here."
        return f"Quantizers run fused kernels; no integer products: {reason}."
    bits = "8-bit" if machine.is_whole() else "4-bit (no VNNI: 8-bit sums are not exact here)"
    speed = "and faster than floats" if _integers_are_fast() else "not faster than floats"
    slow = ", which is not faster than float32 here" if _gradients == "bf16" and not machine.bf16_is_fast() else ""
    return f"Quantizers run integer kernels: {bits} products are exact here, {speed}; gradients in {_gradients}{slow}."


@contextmanager
def restored_kernels() -> Iterator[None]:
    """Restore the selection of kernels afterwards, also the state before any selection."""
    global _active, _gradients
    before = _active, _gradients
    try:
        yield
    finally:
        _active, _gradients = before


def _first_formula_compiles(device: torch.device) -> bool:
    """Return True if the compiler works; otherwise log a warning with the reason."""
    try:
        with torch.no_grad():
            compiled(_first_formula)(torch.ones(2, device=device))
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
    headers = Path(sysconfig.get_path("include"), "Python.h")  # inductor wraps its kernels for Python
    return headers.is_file() and native.find_compiler() is not None

"""Optional C++ kernels of `norm` and of weights: built once with the C++ compiler, cached, called through ctypes.

The cache's file name is a hash of everything that the library depends on: source, flags, compiler and processor. A
library is used only if it computes what PyTorch computes on a small input. If it cannot be built or does not, one
warning says so, and `norm` runs its formulas compiled by inductor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lbitcls.utils.cache import cache_folder
from lbitcls.utils.logging import get_logger
from lbitcls.utils.temporary import new_temporary_folder, remove_leftovers

SOURCES = sorted(Path(__file__).parent.glob("native*.cpp"))
HEADER = Path(__file__).with_name("native.h")
# No flag that lets the compiler assume that there is no NaN or infinity, or reorder sums.
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"]
FLAGS += ["-fopenmp", "-shared", "-fPIC"]
if platform.machine() == "x86_64":
    FLAGS += ["-mprefer-vector-width=512"]
TIMEOUT = 300  # seconds for a build, which takes ten on an idle core
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
"""Dtype of the steps that `backward_sums` writes → its number there."""

_SEARCHED = "CXX names one, else g++ or clang++ in PATH"
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_GRID = [_INT, _FLOAT, _FLOAT, _FLOAT, _FLOAT]  # clips, cap; scale, low, high
_SIZE = [_LONG, _LONG]
_ARGUMENTS = {
    "statistics": [_POINTER, *_SIZE, _POINTER, _POINTER, ctypes.c_double, _POINTER, _INT],
    "activate": [*[_POINTER] * 6, *_GRID, *_SIZE, _INT],
    "backward_sums": [*[_POINTER] * 5, _INT, *[_POINTER] * 2, *_GRID, *_SIZE, *[_POINTER] * 2, _INT],
    "backward_input": [*[_POINTER] * 5, *_SIZE, _INT],
    "quantize_weight": [*[_POINTER] * 3, *[_FLOAT] * 2, *_SIZE, _INT],
    "weight_gradients": [*[_POINTER] * 5, *[_FLOAT] * 2, *_SIZE, _INT],
    "max_pool": [*[_POINTER] * 5, _INT, _FLOAT, _POINTER, _INT],
    "max_pool_gradient": [*[_POINTER] * 4, _INT],
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the kernels, built if necessary, or None if there are none on this machine, which is logged once."""
    compiler = find_compiler()
    if compiler is None:
        _warn(f"cannot be built: there is no C++ compiler ({_SEARCHED})")
        return None
    try:
        loaded = _loaded(compiler)
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        said = getattr(error, "stderr", None)  # bytes after a timeout
        said = said if isinstance(said, str) and said.strip() else str(error)
        first = said.strip().partition("\n")[0]
        _warn(f"cannot be built or loaded ({first})")
        return None
    wrong = _wrong(loaded)
    if wrong:
        _warn(f"compute a wrong {wrong} on this machine")
    return None if wrong else loaded


def _warn(fault: str) -> None:
    get_logger().warning("The C++ kernels of batch normalization %s, so inductor's run, which are slower.", fault)


def find_compiler() -> list[str] | None:
    """Return the command of the C++ compiler, its path first: that of CXX, else g++ or clang++; None if there is none.

    CXX may contain arguments, as in `CXX="g++ -m64"`.
    """
    try:
        commands = [shlex.split(os.environ["CXX"])] if "CXX" in os.environ else [["g++"], ["clang++"]]
    except ValueError:  # a quotation mark without its other
        return None
    for name, *arguments in filter(None, commands):
        path = shutil.which(name)
        if path is not None:
            return [path, *arguments]
    return None


def _loaded(compiler: list[str]) -> ctypes.CDLL:
    """Return the library; one in the cache that is damaged is built again."""
    path = _built(compiler)
    try:
        return _load(path)
    except (OSError, AttributeError):
        path.unlink(missing_ok=True)
        return _load(_built(compiler))


def _built(compiler: list[str]) -> Path:
    """Return the library's file, built unless it is in the cache."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    texts = [path.read_text(encoding="utf-8") for path in (HEADER, *SOURCES)]
    identity = (texts, FLAGS, compiler, version.stdout, _processor())
    name = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    target = cache_folder("kernels") / f"native-{name}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Processes that build at once each write a file of their own; the last rename wins.
    remove_leftovers(target.parent)
    with new_temporary_folder(target.parent) as folder:
        made = folder / target.name
        command = [*compiler, *FLAGS, *map(str, SOURCES), "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
        made.replace(target)
    return target


def _processor() -> str:
    """Return what `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() + platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, types in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, _INT if name in ("activate", "quantize_weight") else None
    return loaded


def address(x: Tensor | None) -> int | None:
    """Return a tensor's address, as ctypes accepts it."""
    return None if x is None else x.data_ptr()


def _wrong(kernels: ctypes.CDLL) -> str | None:
    """Return the first result that is not PyTorch's on a small input, or None."""
    pixels, channels = 96, 3
    generator = torch.Generator().manual_seed(0)
    kind: Any = dict(dtype=torch.float32, device="cpu")
    z, other, grad = (torch.randn(pixels, channels, generator=generator, **kind) + 3 for _ in range(3))
    one, stats, rows = z.new_ones(channels), z.new_empty(5, channels), z.new_empty(4, channels)
    out, codes, steps = torch.empty_like(z), torch.empty_like(z, dtype=torch.uint8), torch.empty_like(z)
    dz, sums, threads, size = torch.empty_like(z), z.new_empty(3), 2, (pixels, channels)
    at, grid = address, (1, float("inf"), 0.25, 0.0, 15.0)
    kernels.statistics(at(z), *size, at(one), at(one), 1e-5, at(stats), threads)
    kernels.activate(at(z), at(other), at(out), at(codes), at(stats[3]), at(stats[4]), *grid, *size, threads)
    given = (at(z), at(out), at(grad), None, at(steps), KINDS[steps.dtype], at(dz), at(stats))
    kernels.backward_sums(*given, *grid, *size, at(rows), at(sums), threads)
    kernels.backward_input(at(z), at(dz), at(dz), at(stats), at(rows), *size, threads)
    weight, scales = z - 3, torch.linspace(0.2, 0.4, pixels, **kind)
    integers, d_weight, w_sums = (torch.empty_like(weight, dtype=dtype) for dtype in (torch.int8, z.dtype, z.dtype))
    bounds, steps_w = (-3.0, 2.0, *size, threads), weight / scales[:, None]
    kernels.quantize_weight(at(weight), at(scales), at(integers), *bounds)
    kernels.weight_gradients(at(weight), at(grad), at(scales), at(d_weight), at(w_sums), *bounds)
    # Without autograd: this may run where its saved tensors are counted, as in a checkpointed function.
    exact = z.double()
    normal = (exact - exact.mean(0)) * (exact.var(0, correction=0) + 1e-5).rsqrt()
    activation = (normal + 1 + other).relu()
    clipped = torch.where((activation > 3.75) | (activation == 0), 0, grad.double())
    projected = clipped - clipped.mean(0) - normal * (clipped * normal).mean(0)
    expected_dz = projected * (exact.var(0, correction=0) + 1e-5).rsqrt()
    inside = torch.where(activation > 3.75, 0.0, grad) * (codes - activation / 0.25)
    results = {
        "mean": (stats[0], z.double().mean(0)),
        "variance": (stats[1], z.double().var(0, correction=0)),
        "activation": (out, activation),
        "code": (codes * 0.25, (out / 0.25).round().clamp(0, 15) * 0.25),
        "step": (steps, codes),
        "gradient": (dz, expected_dz),
        "sum": (sums[0], inside.sum()),
        "weight": (integers, steps_w.round().clamp(-3, 2)),
        "weight's gradient": (d_weight, torch.where((steps_w < -3) | (steps_w > 2), 0.0, grad)),
        "weight's sum": (w_sums.view(3, pixels)[2], torch.where(steps_w > 2, grad, 0.0).sum(1)),
    }
    for name, (got, expected) in results.items():
        if not torch.allclose(got.double(), expected.detach().double(), rtol=1e-3, atol=1e-4):
            return name
    return None

"""Latency and throughput of ONNX files on the CPU, side by side.

The files take turns, a tenth of a second each, so that other work on the machine slows all of them alike; a figure is
the median over all calls in all turns. It is the wall-clock time of `predict` on an array in memory.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lbitcls.deploy.runtime.engine import Engine, load
from lbitcls.deploy.runtime.metadata import model_file
from lbitcls.utils.errors import ConfigError

MOST_REPEATS = 100_000
_MEMORY_SHARE = 16  # images get 1/16 of the machine's memory: a network's activations need about ten times as much
_TURN = 0.1  # seconds
_WARM_UP = 0.3  # seconds


@dataclass(frozen=True)
class Timing:
    """Speed of one file at one batch size.

    Attributes:
        file: Path of the file.
        bits: Bits of its layers: `'W4A4'`, `'float'`, `'?'` for a file that lbitcls did not write.
        precision: Precision of operations outside of integer layers.
        batch: Batch size.
        median_ms: Median latency of a call in ms.
        p90_ms: 90th percentile of the latency in ms.
        images_per_second: Throughput at the median latency.
        ratio: Median latency divided by the baseline's at this batch size; None without a baseline.
        size_kib: Size of the file in KiB.
    """

    file: str
    bits: str
    precision: str
    batch: int
    median_ms: float
    p90_ms: float
    images_per_second: float
    ratio: float | None
    size_kib: float


@dataclass(frozen=True)
class Comparison:
    """Result of `time_models`.

    Attributes:
        cpu: Name of the CPU.
        cores: Number of cores of the machine.
        threads: Number of threads of the engine; None: its own choice.
        engine: Name and version of the engine.
        baseline: File that ratios refer to, in float32 unless all are timed in bf16; None: no baseline.
        timings: One row per batch size, file and precision.
    """

    cpu: str
    cores: int
    threads: int | None
    engine: str
    baseline: str | None
    timings: tuple[Timing, ...]


def time_models(
    paths: Sequence[str | Path],
    *,
    engine: str | None = None,
    threads: int | None = 2,
    batches: Sequence[int] = (1, 16),
    precision: str = "f32",
    bf16: bool = False,
    repeats: int = 30,
) -> Comparison:
    """Time exported models side by side.

    Args:
        paths: Exported models that expect images of one shape. The baseline is the first that is known to be float,
            or else the last of several.
        engine: Name of the engine; None: for each file the first that judges files of its target.
        threads: Number of threads of the engine; None: its own choice.
        batches: Batch sizes, each at least 1.
        precision: `'f32'` or `'bf16'`.
        bf16: Time the baseline in bf16 too, if the engine and the CPU support it.
        repeats: Number of turns of each file at each batch size, at least 1.

    Raises:
        ConfigError: A number is below 1 or far too large, or the files expect images of different shapes.
        CheckpointError: A file is missing, or the engine cannot run it.
    """
    for name, values in (("batch", batches), ("repeats", [repeats])):
        if not values or any(not isinstance(value, int) or value < 1 for value in values):
            raise ConfigError(f"--{name} must be integers ≥ 1; got {' '.join(map(str, values)) or 'none'}.")
    if repeats > MOST_REPEATS:
        raise ConfigError(f"--repeats must be at most {MOST_REPEATS:,}, of a tenth of a second each; got {repeats:,}.")
    timings: list[Timing] = []
    for batch in batches:
        runs = [load(path, engine, threads, precision) for path in paths]
        _check_memory(max(batches), _image_shape(runs))
        baseline = _baseline(runs)
        if bf16 and baseline is not None and precision != "bf16" and baseline.supports("bf16"):
            runs.append(load(baseline.path, baseline.name, threads, "bf16"))
        timings += time_engines(runs, baseline, batch, repeats)
    return Comparison(
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        threads=threads,
        engine=", ".join(dict.fromkeys(f"{run.name} {run.version}" for run in runs)),
        baseline=str(baseline.path) if baseline is not None else None,
        timings=tuple(timings),
    )


def _check_memory(batch: int, shape: tuple[int, ...]) -> None:
    """Raise `ConfigError` if a batch of images needs too much memory, before the system kills the process."""
    size = np.dtype(np.float32).itemsize * math.prod(shape)
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MEMORY_SHARE // size
    if batch > most:
        raise ConfigError(
            f"--batch {batch:,}: the images alone would need {batch * size / 2**30:,.1f} GiB; this machine allows at "
            f"most {most:,} images {shape}."
        )


def _baseline(runs: Sequence[Engine]) -> Engine | None:
    known = [run for run in runs if run.info is not None and run.info.is_float]
    if known:
        return known[0]
    return runs[-1] if len(runs) > 1 else None


def time_engines(runs: Sequence[Engine], baseline: Engine | None, batch: int, repeats: int) -> list[Timing]:
    """Time opened files side by side at one batch size, on random images.

    Args:
        runs: Engines that expect images of one shape.
        baseline: Engine among them that ratios refer to; None: no ratios.
        batch: Batch size.
        repeats: Number of turns of each engine.

    Raises:
        ConfigError: The engines expect images of different shapes.
    """
    images = np.random.default_rng(0).standard_normal((batch, *_image_shape(runs)), dtype=np.float32)
    for run in runs:
        _calls(run, images, _WARM_UP)
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, seen in zip(runs, times, strict=True):
            seen += _calls(run, images, _TURN)
    medians = {id(run): float(np.median(seen)) for run, seen in zip(runs, times, strict=True)}
    return [
        Timing(
            file=str(run.path),
            bits=run.info.bits if run.info is not None else "?",
            precision=run.precision,
            batch=batch,
            median_ms=1e3 * medians[id(run)],
            p90_ms=1e3 * float(np.quantile(seen, 0.9)),
            images_per_second=batch / medians[id(run)],
            ratio=None if baseline is None else medians[id(run)] / medians[id(baseline)],
            size_kib=model_file(run.path).stat().st_size / 1024,
        )
        for run, seen in zip(runs, times, strict=True)
    ]


def _calls(run: Engine, images: np.ndarray, seconds: float) -> list[float]:
    """Return the duration in seconds of each call that starts within `seconds`; at least one call."""
    began = time.perf_counter()
    taken: list[float] = []
    while not taken or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run.predict(images)
        taken.append(time.perf_counter() - start)
    return taken


def _image_shape(runs: Sequence[Engine]) -> tuple[int, ...]:
    """Return the image shape (C, H, W), which all files must share."""
    shapes = {run.path: run.info.input_shape if run.info is not None else run.input_shape for run in runs}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
        raise ConfigError(f"files are timed side by side on the same images, but these expect other shapes: {listed}.")
    shape = next(iter(shapes.values()))
    if None in shape:
        raise ConfigError(f"{runs[0].path} leaves the image size free and does not record the intended one: {shape}.")
    return tuple(size for size in shape if size is not None)


def cpu_name() -> str:
    """Return the processor's name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

"""Latency and throughput of ONNX files on the CPU, side by side.

The files take turns, a tenth of a second each, so that whatever else the machine does slows all of them alike; a figure
is the median over all calls of all turns. Time is wall-clock time, of `predict` with an array that is ready.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lbitcls.deploy.runtime.engine import Engine, can_bf16, load
from lbitcls.utils.errors import ConfigError

MOST_REPEATS = 100_000
_MEMORY_SHARE = 16  # of the machine's memory for images: what a network makes of them takes about ten times as much
_TURN = 0.1  # seconds
_WARM_UP = 0.3  # seconds


@dataclass(frozen=True)
class Timing:
    """How fast one file is at one batch size.

    Attributes:
        file: its path.
        bits: of its layers: `'W4A4'`, `'float'`, `'?'` for a file that lbitcls did not write.
        precision: of what is not computed in integers.
        batch: images of a call.
        median_ms: of a call, in milliseconds.
        p90_ms: what nine calls of ten did not exceed.
        images_per_second: at the median.
        ratio: the median, over the baseline's at this batch size; None without a baseline.
        size_kib: of the file.
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
    """What `time_models` saw.

    Attributes:
        cpu: its name.
        cores: of the machine.
        threads: of the engine; None: its own choice.
        engine: with its version.
        baseline: the file that ratios are to, in float32 unless all are timed in bf16; None: there is none.
        timings: a row for each batch size, file and precision.
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
    engine: str = "openvino",
    threads: int | None = 2,
    batches: Sequence[int] = (1, 16),
    precision: str = "f32",
    bf16: bool = False,
    repeats: int = 30,
) -> Comparison:
    """Time files beside each other.

    Args:
        paths: of ONNX files with images of one shape. Ratios are to the first that is known to be float, or else to
            the last, where there are several.
        engine: `'openvino'` or `'onnxruntime'`.
        threads: of the engine; None: its own choice.
        batches: batch sizes.
        precision: `'f32'` or `'bf16'`.
        bf16: time the baseline in bf16 too, where the engine and the CPU have it.
        repeats: turns of each file at each batch size.

    Raises:
        ConfigError: a number below 1 or far too large, or images of several shapes.
        CheckpointError: a file is missing, or cannot be run.
    """
    for name, values in (("batch", batches), ("repeats", [repeats])):
        if not values or any(not isinstance(value, int) or value < 1 for value in values):
            raise ConfigError(f"--{name} takes numbers from 1; got {' '.join(map(str, values)) or 'none'}.")
    if repeats > MOST_REPEATS:
        raise ConfigError(f"--repeats is at most {MOST_REPEATS:,}, of a tenth of a second each; got {repeats:,}.")
    timings: list[Timing] = []
    for batch in batches:
        runs = [load(path, engine, threads, precision) for path in paths]
        _check_memory(max(batches), _image_shape(runs))
        baseline = _baseline(runs)
        if bf16 and baseline is not None and precision != "bf16" and can_bf16(engine):
            runs.append(load(baseline.path, engine, threads, "bf16"))
        timings += time_engines(runs, baseline, batch, repeats)
    return Comparison(
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        threads=threads,
        engine=f"{engine} {version(engine)}",
        baseline=str(baseline.path) if baseline is not None else None,
        timings=tuple(timings),
    )


def _check_memory(batch: int, shape: tuple[int, ...]) -> None:
    """Raise where the images of a batch take more memory than is sensible, before the system ends the process."""
    size = np.dtype(np.float32).itemsize * math.prod(shape)
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MEMORY_SHARE // size
    if batch > most:
        raise ConfigError(
            f"--batch {batch:,}: the images alone would take {batch * size / 2**30:,.1f} GiB; on this machine it is at "
            f"most {most:,} images {shape}."
        )


def _baseline(runs: Sequence[Engine]) -> Engine | None:
    known = [run for run in runs if run.info is not None and run.info.is_float]
    if known:
        return known[0]
    return runs[-1] if len(runs) > 1 else None


def time_engines(runs: Sequence[Engine], baseline: Engine | None, batch: int, repeats: int) -> list[Timing]:
    """Time opened files beside each other at one batch size.

    Args:
        runs: engines whose images have one shape.
        baseline: the one of them that ratios are to; None: no ratios.
        batch: images of a call, random ones.
        repeats: turns of each.

    Raises:
        ConfigError: images of several shapes.
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
            size_kib=run.path.stat().st_size / 1024,
        )
        for run, seen in zip(runs, times, strict=True)
    ]


def _calls(run: Engine, images: np.ndarray, seconds: float) -> list[float]:
    """Seconds of each call, of as many as begin within `seconds`."""
    began = time.perf_counter()
    taken: list[float] = []
    while not taken or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run.predict(images)
        taken.append(time.perf_counter() - start)
    return taken


def _image_shape(runs: Sequence[Engine]) -> tuple[int, ...]:
    """(C, H, W), which all files must share."""
    shapes = {run.path: run.info.input_shape if run.info is not None else run.input_shape for run in runs}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
        raise ConfigError(f"files are timed beside each other with the same images, but these take others: {listed}.")
    shape = next(iter(shapes.values()))
    if None in shape:
        raise ConfigError(f"{runs[0].path} leaves the image size free and does not say what it was made for: {shape}.")
    return tuple(size for size in shape if size is not None)


def cpu_name() -> str:
    """As the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

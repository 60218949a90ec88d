"""Engines that judge an exported model: opened, timed, and their certificates."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lbitcls.deploy.runtime.benchmark import cpu_name
from lbitcls.deploy.runtime.engine import Engine, default_engine, load, load_usable, opening
from lbitcls.deploy.runtime.metadata import existing_model, model_file, read_info
from lbitcls.deploy.targets.base import find_target
from lbitcls.deploy.verification.certificate import Certificate
from lbitcls.deploy.verification.live_model import Evaluation, Outputs, as_tuple
from lbitcls.deploy.verification.placement import integer_layers
from lbitcls.deploy.verification.verdict import Verification
from lbitcls.registry import TARGETS
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.files import sha256_of


def judges(path: str | Path, engines: Sequence[str] | None, threads: int | None) -> tuple[list[Engine], dict[str, str]]:
    """Return the engines that judge a file, and those of its target that cannot run it, with the reason.

    Args:
        path: Exported file or folder.
        engines: Names of engines to use instead.
        threads: Number of threads of each engine; None: its own choice.
    """
    if engines is not None:
        if not engines:
            raise ConfigError("engines must name at least one engine; got none.")
        chosen = opening(Path(path), engines) or opening(model_file(Path(path)), engines)
        if not chosen:
            raise ConfigError(f"none of {', '.join(engines)} opens {path}; add {default_engine(existing_model(path))}.")
        return [load(path, engine, threads=threads) for engine in chosen], {}
    path = existing_model(path)
    info = read_info(path)
    target = "cpu" if info is None else info.target
    judges = info.engines if info is not None and info.engines is not None else find_target(target).engines
    judges = opening(path, judges) or [default_engine(path)]
    loaded, cannot_run = load_usable(path, judges, threads)
    if not loaded:
        raise CheckpointError(f"no engine runs {path}: {'; '.join(f'{n}: {why}' for n, why in cannot_run.items())}")
    return loaded, cannot_run


def rounds(engine: Engine) -> bool:
    """Return True if the engine rounds between layers, as its file's target says."""
    return engine.info is not None and getattr(TARGETS.get(engine.info.target), "rounds_between_layers", False)


def engine_evaluation(engine: TimedEngine) -> Evaluation:
    """Return the function from images to an engine's outputs, as tensors."""

    def run(images: Tensor) -> Outputs:
        outputs = engine(images.float().cpu().numpy())
        return tuple(torch.from_numpy(array) for array in as_tuple(outputs))

    return run


class TimedEngine:
    """Engine whose calls are timed.

    Attributes:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._seconds: dict[int, list[float]] = {}  # of each call, by batch size

    def __call__(self, images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Return the engine's outputs."""
        start = time.perf_counter()
        outputs = self.engine.predict(images)
        self._seconds.setdefault(len(images), []).append(time.perf_counter() - start)
        return outputs

    @property
    def milliseconds(self) -> float | None:
        """Time for an image, on average over the batches of the size that most images came in, in ms.

        The first of several such batches does not count: an engine may compile for it. None for an engine that is not
        for speed.
        """
        if not self.engine.is_timed:
            return None
        size, seconds = max(self._seconds.items(), key=lambda item: item[0] * len(item[1]))
        counted = seconds[1:] or seconds
        return 1e3 * sum(counted) / (size * len(counted))


def certify(
    timed: TimedEngine, found: Verification, reference: str, passed: bool | None, name: str | None = None
) -> Certificate:
    """Return the certificate of an engine from its comparisons with the reference, the worst of several outputs.

    Args:
        timed: The engine.
        found: Comparisons of this engine, and perhaps of others.
        reference: What the engine was compared with.
        passed: True if nothing speaks against its results.
        name: Name of the engine in `found`; None: its own.
    """
    engine, deviation = timed.engine, found.deviation
    mine = [row for row in found.rows if row.name == (name or engine.name)]
    worst = max(mine, key=lambda row: row.mean / (deviation[row.output] or 1))
    counts = _integer_counts(engine)
    file = model_file(engine.path)
    return Certificate(
        file=str(engine.path),
        sha256=sha256_of(file),
        target=None if engine.info is None else engine.info.target,
        engine=engine.name,
        version=engine.version,
        reference=reference,
        images=found.images,
        agreement=worst.agreement,
        mean=worst.mean,
        largest=max(row.largest for row in mine),
        deviation=deviation[worst.output],
        integer=None if counts is None else counts[0],
        layers=None if counts is None else counts[1],
        size=os.path.getsize(file),
        milliseconds=timed.milliseconds,
        threads=engine.threads,
        cpu=cpu_name(),
        date=datetime.now(timezone.utc).date().isoformat(),
        passed=passed,
    )


def _integer_counts(engine: Engine) -> tuple[int, int] | None:
    if engine.name != "openvino":
        return engine.integer_counts()
    kinds = integer_layers(engine.path).values()
    return sum(kind["integer"] for kind in kinds), sum(kind["total"] for kind in kinds)

"""Certificate of an exported model: for each engine, on which images it agreed with the model, and what it measured."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.benchmark import cpu_name
from lbitcls.deploy.runtime.engine import Engine
from lbitcls.deploy.runtime.metadata import model_file
from lbitcls.deploy.verification.placement import integer_layers
from lbitcls.deploy.verification.verdict import Verification
from lbitcls.utils.files import sha256_of


@dataclass(frozen=True)
class Certificate:
    """What one engine computed, compared with the reference.

    Attributes:
        file: Name of the exported file or folder.
        sha256: SHA-256 of the file that contains the model.
        target: Target that it was exported for; None: not recorded.
        engine: Name of the engine.
        version: Version of the engine's package.
        reference: What the engine was compared with.
        images: Number of images.
        agreement: Percentage of the images with the same best class; None for features.
        mean: Mean absolute difference of the outputs.
        largest: Largest absolute difference of the outputs.
        deviation: Standard deviation of the reference's outputs.
        integer: Convolutions and linear layers that run in integers, as the engine says; None: it cannot tell.
        layers: Number of convolutions and linear layers.
        size: Size of the file that contains the model, in bytes.
        milliseconds: Time that the engine took for an image, on average, in the batches of the verification.
        threads: Number of threads of the engine; None: its own choice.
        cpu: Name of the processor.
        date: Day of the measurement, UTC.
        passed: True if no reason to reject the file was found.
    """

    file: str
    sha256: str
    target: str | None
    engine: str
    version: str
    reference: str
    images: int
    agreement: float | None
    mean: float
    largest: float
    deviation: float
    integer: int | None
    layers: int | None
    size: int
    milliseconds: float
    threads: int | None
    cpu: str
    date: str
    passed: bool

    @property
    def sentence(self) -> str:
        """The certificate in one sentence, without its reference."""
        same = f"on {self.images:,} images"
        if self.agreement is not None:
            same = f"the same class for {self.agreement:.2f} % of {self.images:,} images"
        counts = "" if self.integer is None else f"{self.integer} of {self.layers} layers in integers; "
        return (
            f"{self.engine} {self.version}: {same}; outputs differ by {self.mean:.2g} on average, {self.largest:.2g} "
            f"at most; {counts}{self.size / 1024:,.0f} KiB, {self.milliseconds:.3g} ms for an image."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as plain data."""
        return asdict(self)


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
    def milliseconds(self) -> float:
        """Time for an image, on average over the batches of the size that most images came in, in ms.

        The first of several such batches does not count: an engine may compile for it.
        """
        size, seconds = max(self._seconds.items(), key=lambda item: item[0] * len(item[1]))
        counted = seconds[1:] or seconds
        return 1e3 * sum(counted) / (size * len(counted))


def certify(
    timed: TimedEngine, found: Verification, reference: str, passed: bool, name: str | None = None
) -> Certificate:
    """Return the certificate of an engine from its comparisons with the reference, the worst of several outputs.

    Args:
        timed: The engine.
        found: Comparisons of this engine, and perhaps of others.
        reference: What the engine was compared with.
        passed: True if the file was not rejected.
        name: Name of the engine in `found`; None: its own.
    """
    engine, deviation = timed.engine, found.deviation
    mine = [row for row in found.rows if row.name == (name or engine.name)]
    worst = max(mine, key=lambda row: row.mean / (deviation[row.output] or 1))
    counts = _integer_counts(engine)
    file = model_file(engine.path)
    return Certificate(
        file=engine.path.name,
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

"""Certificate of an exported model: for each engine, on which images it agreed with the model, and what it measured."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from lbitcls.deploy.runtime.benchmark import cpu_name
from lbitcls.deploy.runtime.engine import Engine
from lbitcls.deploy.runtime.metadata import model_file
from lbitcls.deploy.verification.verdict import Comparison
from lbitcls.utils.files import sha256_of

COLUMNS = ("engine", "version", "images", "agree\n%", "mean\nlogits", "largest\nlogits", "in integers", "KiB", "ms")
"""Column titles of `Certificate.cells`; ms: for one image of a batch."""


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

    def cells(self) -> tuple[str, ...]:
        """Return a row of a table with the titles `COLUMNS`."""
        return (
            self.engine,
            self.version,
            str(self.images),
            "" if self.agreement is None else f"{self.agreement:.2f}",
            f"{self.mean:.3g}",
            f"{self.largest:.3g}",
            "not known" if self.integer is None else f"{self.integer} of {self.layers}",
            f"{self.size / 1024:.0f}",
            f"{self.milliseconds:.2f}",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as plain data."""
        return asdict(self)


class TimedEngine:
    """Engine whose calls are timed.

    Attributes:
        engine: The engine.
        seconds: Time of all calls but the first, which may compile.
        images: Images of these calls.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seconds, self.images = 0.0, 0
        self._warm: set[tuple[int, ...]] = set()

    def __call__(self, images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Return the engine's outputs."""
        if images.shape not in self._warm:
            self._warm.add(images.shape)
            self.engine.predict(images)
        start = time.perf_counter()
        outputs = self.engine.predict(images)
        self.seconds += time.perf_counter() - start
        self.images += len(images)
        return outputs


def certify(
    timed: TimedEngine,
    rows: Sequence[Comparison],
    deviation: dict[str, float],
    reference: str,
    images: int,
    passed: bool,
) -> Certificate:
    """Return the certificate of an engine from its comparisons with the reference, the worst of several outputs."""
    engine = timed.engine
    mine = [row for row in rows if row.name == engine.name]
    worst = max(mine, key=lambda row: row.mean / (deviation[row.output] or 1))
    counts = engine.integer_counts()
    file = model_file(engine.path)
    return Certificate(
        file=engine.path.name,
        sha256=sha256_of(file),
        target=None if engine.info is None else engine.info.target,
        engine=engine.name,
        version=engine.version,
        reference=reference,
        images=images,
        agreement=worst.agreement,
        mean=worst.mean,
        largest=max(row.largest for row in mine),
        deviation=deviation[worst.output],
        integer=None if counts is None else counts[0],
        layers=None if counts is None else counts[1],
        size=os.path.getsize(file),
        milliseconds=1e3 * timed.seconds / max(1, timed.images),
        threads=engine.threads,
        cpu=cpu_name(),
        date=datetime.now(timezone.utc).date().isoformat(),
        passed=passed,
    )

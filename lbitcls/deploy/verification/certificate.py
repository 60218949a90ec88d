"""Certificate of an exported model: for each engine, on which images it agreed with the model, and what it measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Certificate:
    """Result of one engine, compared with the reference.

    Attributes:
        file: Path of the exported file or folder, as given.
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
        milliseconds: Time that the engine took for an image, on average, in the batches of the verification; None for
            an engine that only checks files.
        threads: Number of threads of the engine; None: its own choice.
        cpu: Name of the processor.
        date: Day of the measurement, UTC.
        passed: True if nothing speaks against these results; None: nothing does, but the images are too few to tell.
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
    milliseconds: float | None
    threads: int | None
    cpu: str
    date: str
    passed: bool | None

    @property
    def sentence(self) -> str:
        """Certificate in one sentence, without its reference."""
        same = f"on {_images(self.images)}"
        if self.agreement is not None:
            same = f"the same class for {self.agreement:.2f} % of {_images(self.images)}"
        counts = "" if self.integer is None else f"{self.integer} of {self.layers} layers in integers; "
        time = "" if self.milliseconds is None else f", {self.milliseconds:.3g} ms for an image"
        return (
            f"{self.engine} {self.version}: {same}; outputs differ by {self.mean:.2g} on average, {self.largest:.2g} "
            f"at most; {counts}{self.size / 1024:,.0f} KiB{time}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as plain data."""
        return asdict(self)


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"

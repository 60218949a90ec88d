"""Section `calibration.reconstruct`: rounding of weights that calibration learns from images, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from lbitcls.settings.base import Section
from lbitcls.settings.fields import INTEGER, NUMBER, Count, Doc, Factor, Switch

Positive = Annotated[float, Gt(0), NUMBER]
Probability = Annotated[float, Ge(0), Le(1), NUMBER]
Seed = Annotated[int, INTEGER, Ge(0), Le(2**31 - 1)]
ITERATIONS = {"nearest": 0, "adaround": 500, "qdrop": 300}
"""Default number of optimizer steps by the kind of rounding."""


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(Section):
    """Learned rounding of the weights, for `lbitcls calibrate`."""

    PLACE: ClassVar[str] = "calibration.reconstruct"

    rounding: Annotated[
        Literal["nearest", "adaround", "qdrop"],
        Doc(
            "adaround: learn to round each layer's weights up or down; qdrop: learn the roundings of a block together, "
            "with its input quantizers; nearest: only correct biases and equalize, as the options below ask."
        ),
    ] = "adaround"
    iterations: Annotated[
        Count | None, Doc("Optimizer steps of each layer or block; None: 500 for adaround, 300 for qdrop.")
    ] = None
    learning_rate: Annotated[Positive, Doc("Learning rate of the roundings (Adam).")] = 0.03
    range_learning_rate: Annotated[
        Factor, Doc("Of qdrop: learning rate of the input quantizers, as a fraction of their values.")
    ] = 0.002
    decision: Annotated[Factor, Doc("Factor of the regularizer that drives each weight to one of its roundings.")] = 1.0
    drop: Annotated[
        Probability,
        Doc("Of qdrop: probability that an activation stays float in a step; 0: plain block reconstruction (BRECQ)."),
    ] = 0.5
    batch_size: Annotated[Count, Doc("Of qdrop: images in a step.")] = 16
    correct_bias: Annotated[
        Switch, Doc("Shift each layer's bias, or the mean of its BatchNorm, so that the mean error of a channel is 0.")
    ] = True
    equalize: Annotated[
        Switch, Doc("First balance the ranges of the channels between layers that a ReLU separates at most.")
    ] = False
    max_mib: Annotated[
        Positive,
        Doc("Memory for the cached inputs and outputs of a block, in MiB; fewer images are used if they exceed it."),
    ] = 1024.0
    seed: Annotated[Seed, Doc("Seed of the sampled positions, batches and dropped activations.")] = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of each layer or block."""
        return ITERATIONS[self.rounding] if self.iterations is None else self.iterations

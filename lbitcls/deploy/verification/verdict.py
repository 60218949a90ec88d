"""What a verification found, and the rule by which a file is rejected.

All is compared with float32: the model as it is tested. Over at least 100 images, an engine that runs the file fails
where it is beyond a bound of its own,

    its mean difference exceeds 2 % of the outputs' standard deviation (or, where the yardstick below is more than
        that, 1.25 times the yardstick, and 5 % in any case)
    more than 0.5 % of the images without a tie, and more than one image, change their best class
        (tied: the two best logits are closer than a tenth of the standard deviation).

The standard deviation counts as at most three times that of one logit over the images: one that is the same for all of
them, and far from the others, tells nothing of how they vary. Four images are given one at a time besides, and judged
as few images are (below); or a file fails that is beyond what rounding does to this model, measured by float64, the
yardstick:

    its mean difference exceeds both twice the yardstick's and 1e-3 of the standard deviation
    more than 0.1 % of the images without a tie, and more than one image, change their best class
        (tied: the two best logits are closer than the yardstick's largest difference)

The yardstick itself is held to 5 % and to the 0.5 % of classes: beyond them the model's own result hangs on how it is
rounded, and no file can be confirmed. Between 2 and 5 % lie right files of models with many layers: MobileNetV2 in 8
bits has 3.1 %, in float64 as in every engine, and no class of a clear image changes. Features of a backbone have no
classes; the means alone count for each of them.

Fewer images cannot confirm a file: a value that rounds to the other side moves one image by far more than the mean of
many. They reject it, or the yardstick, where

    its mean difference exceeds 10 % of the standard deviation
    it exceeds both five times the yardstick's and 5 % of the standard deviation (an engine)

or, if that is more, what one image adds to the mean that is off by a whole standard deviation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FEWEST_IMAGES = 100
"""Images that a file needs to be confirmed."""
YARDSTICKS = 2.0
"""An engine's mean difference may be this many times that between float32 and float64."""
DEVIATIONS = 1e-3
"""Or this part of the outputs' standard deviation, if that is more."""
GROSS_YARDSTICKS = 5.0
"""On fewer images: it may be this many times that between float32 and float64."""
GROSS_DEVIATIONS = 0.05
"""Or this part of the standard deviation, if that is more, or one part in the number of images."""
IMAGES_PER_CHANGE = 1000
"""One in so many images without a tie may change its class; one image always may."""
MOST_DEVIATIONS = 0.02
"""No mean difference may be more than this part of the standard deviation, unless the yardstick is more."""
STEADY_YARDSTICKS = 1.25
"""Then it may be this many times the yardstick."""
CAP_DEVIATIONS = 0.05
"""No mean difference may ever be more than this part of the standard deviation, the yardstick's included."""
GROSS_MOST_DEVIATIONS = 0.1
"""On fewer images: or this part, or one part in the number of images, if that is more."""
TIED_DEVIATIONS = 0.1
"""An image is clear, whatever the yardstick is, whose two best logits are this part of the deviation apart."""
MOST_FLIPPED = 0.005
"""This part of the clear images may change its class, the yardstick's included; one image always may."""
COLUMNS = ("compared", "with", "agree", "mean", "largest", "identical", "changed")
"""Titles of `Verification.table`, whose words stay whole on a terminal of 80 columns."""


@dataclass(frozen=True)
class Comparison:
    """How far one output of one evaluation is from the reference's.

    Attributes:
        name: `float64`, `integer`, or an engine's name.
        reference: what it is compared with: `float32` (or `float64`).
        output: `logits`, or `feature_0`, ….
        mean: mean of the differences' magnitudes.
        largest: the largest of them.
        identical: percent of the images whose whole row is equal, in float32.
        agreement: percent of the images with the same best class; None for features.
        changed: images without a tie (see `Verification.untied`) whose best class is another; None for features.
        flipped: likewise, of the images in `Verification.clear`.
    """

    name: str
    reference: str
    output: str
    mean: float
    largest: float
    identical: float
    agreement: float | None = None
    changed: int | None = None
    flipped: int | None = None

    def cells(self) -> tuple[str, ...]:
        """The row of `Verification.table`."""
        name = self.name if self.output == "logits" else f"{self.name} {self.output}"
        agreement = "" if self.agreement is None else f"{self.agreement:.2f} %"
        changed = "" if self.changed is None else str(self.changed)
        return (
            name,
            self.reference,
            agreement,
            f"{self.mean:.3g}",
            f"{self.largest:.3g}",
            f"{self.identical:.1f} %",
            changed,
        )


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        images: number of images.
        untied: images whose two best logits (of the float32 model) are not closer than the largest difference between
            float32 and float64; None for features.
        deviation: standard deviation of each output of the float32 model, by its name; at most three times that of an
            element over the images.
        yardstick: float64 beside float32, for each output.
        rows: the integer reference (where the model has integer layers) and the engines beside float32, for each
            output.
        exactness: the integer reference beside float64, for each output: rounding of the final scales.
        largest_accumulator: name of the integer layer with the largest possible sum, and that sum.
        float_layers: quantized layers that are float in the integer reference, with the reason.
        clear: images whose two best logits (of the float32 model) are at least a tenth of the deviation apart; None
            for features.
        cannot_run: engines that cannot run the file and so do not judge it, with the reason.
        alone: why the file is rejected when it is given some of the images one at a time.
    """

    images: int
    untied: int | None
    deviation: dict[str, float]
    yardstick: tuple[Comparison, ...]
    rows: tuple[Comparison, ...]
    exactness: tuple[Comparison, ...]
    largest_accumulator: tuple[str, int] | None
    float_layers: dict[str, str]
    clear: int | None = None
    cannot_run: dict[str, str] = field(default_factory=dict)
    alone: tuple[str, ...] = ()

    @property
    def judged(self) -> bool:
        """Whether there were images enough to confirm the file."""
        return self.images >= FEWEST_IMAGES

    @property
    def passed(self) -> bool:
        """No reason to reject the file was found; on fewer than 100 images that does not confirm it."""
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the file is rejected, one text each."""
        found = [reason for row in self.yardstick if (reason := self._unsteady(row)) is not None]
        means = {row.output: row.mean for row in self.yardstick}
        for row in self.rows:
            beyond = self._beyond(row, self._bound(row.output, means[row.output]))
            relative = (self._too_far(row, means[row.output]), self._too_many(row))
            found += beyond or [reason for reason in relative if reason is not None]
        return (*found, *(f"images one at a time: {reason}" for reason in self.alone))

    @property
    def warning(self) -> str | None:
        """What to tell the user of a file that is neither confirmed nor rejected."""
        if self.judged or not self.passed:
            return None
        return (
            f"{self.images} images are too few to judge the file: {FEWEST_IMAGES} are needed to confirm it. Only a "
            "gross difference would have rejected it, and none was found."
        )

    def table(self) -> list[tuple[str, ...]]:
        """Rows for `print_table`, under `COLUMNS`."""
        return [row.cells() for row in (*self.yardstick, *self.exactness, *self.rows)]

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data, for the report."""
        return {
            **asdict(self),
            "judged": self.judged,
            "passed": self.passed,
            "reasons": list(self.reasons),
            "warning": self.warning,
        }

    def _allowed(self) -> tuple[float, float]:
        """How many yardsticks, and what part of the standard deviation, a mean difference may be."""
        if self.judged:
            return YARDSTICKS, DEVIATIONS
        return GROSS_YARDSTICKS, max(GROSS_DEVIATIONS, 1 / self.images)

    def _bound(self, output: str, yardstick: float) -> float:
        """What part of the standard deviation the mean difference of an engine may be at most."""
        if not self.judged:
            return max(GROSS_MOST_DEVIATIONS, 1 / self.images)
        steady = STEADY_YARDSTICKS * yardstick / self.deviation[output] if self.deviation[output] > 0 else 0.0
        return min(CAP_DEVIATIONS, max(MOST_DEVIATIONS, steady)) if steady == steady else MOST_DEVIATIONS

    def _beyond(self, row: Comparison, part: float) -> list[str]:
        """Why `row` is beyond the bounds, `part` of the standard deviation and 0.5 % of the clear classes."""
        reasons, deviation = [], self.deviation[row.output]
        if not row.mean <= part * deviation:  # also what is not a number
            reasons.append(
                f"{row.name}: {row.output} differ by {row.mean:.3g} in the mean, {_of(row.mean, deviation)} of their "
                f"standard deviation; at most {100 * part:.3g} % is right."
            )
        flipped, clear = row.flipped or 0, self.clear or 0
        if self.judged and flipped > max(1, int(MOST_FLIPPED * clear)):
            reasons.append(
                f"{row.name}: {flipped} of {clear} images change their class though their two best logits are "
                f"{TIED_DEVIATIONS:g} standard deviations or more apart; at most {100 * MOST_FLIPPED:g} % may, or one "
                "image."
            )
        return reasons

    def _unsteady(self, row: Comparison) -> str | None:
        """Why the yardstick is none."""
        reasons = self._beyond(row, CAP_DEVIATIONS if self.judged else max(GROSS_MOST_DEVIATIONS, 1 / self.images))
        if not reasons:
            return None
        return (
            f"{' '.join(reasons)} So the model's own result, in float32, is not that of the same model in float64, and "
            "no file can be confirmed by its outputs: something in it is random or changes from call to call, a hook "
            "uses another model's weights, or rounding errors grow from layer to layer (many layers, few bits). Export "
            "without verification, and measure the file's accuracy: lbitcls test CONFIG FILE."
        )

    def _too_far(self, row: Comparison, yardstick: float) -> str | None:
        yardsticks, deviations = self._allowed()
        limit = max(yardsticks * yardstick, deviations * self.deviation[row.output])
        if row.mean <= limit:  # false for what is not a number
            return None
        return (
            f"{row.name}: {row.output} differ by {row.mean:.3g} in the mean, more than {limit:.3g}, the larger of "
            f"{yardsticks:g} times what float32 and float64 differ by and {deviations:.3g} of the standard deviation."
        )

    def _too_many(self, row: Comparison) -> str | None:
        if row.changed is None or self.untied is None or not self.judged:
            return None
        allowed = max(1, self.untied // IMAGES_PER_CHANGE)
        if row.changed <= allowed:
            return None
        return (
            f"{row.name}: {row.changed} of {self.untied} images without a tie change their class; at most one in "
            f"{IMAGES_PER_CHANGE:,} may, or one image."
        )


def _of(value: float, whole: float) -> str:
    return f"{100 * value / whole:.3g} %" if whole > 0 else "more than 0 %"

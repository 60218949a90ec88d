"""Result of a verification, and the rules that reject a file.

Everything is compared with float32, the model as tested. Over at least 100 images, an engine that runs the file fails
if it exceeds an absolute bound:

    its mean difference exceeds 2 % of the outputs' standard deviation (or, if the yardstick below is larger,
        1.25 times the yardstick, but 5 % in any case)
    more than 0.5 % of the images without a tie, and more than one image, change their best class
        (tied: the top two logits are closer than a tenth of the standard deviation).

The standard deviation counts as at most three times that of one logit over the images: a logit that is the same for all
images, and far from the others, says nothing about how they vary. Four images also run one at a time, and are judged by
the rules for few images (below). A file also fails if it exceeds the effect of rounding on this model, measured in
float64, the yardstick:

    its mean difference exceeds both twice the yardstick's and 1e-3 of the standard deviation
    more than 0.1 % of the images without a tie, and more than one image, change their best class
        (tied: the top two logits are closer than the yardstick's largest difference)

The yardstick itself must stay within 5 % and within 0.5 % of the classes: beyond them the model's own result depends on
rounding, and no file can be confirmed. Correct files of models with many layers lie between 2 and 5 %: MobileNetV2 at 8
bits has 3.1 %, in float64 as in every engine, and no class of a clear image changes. Features of a backbone have no
classes; for each of them, only the means count.

Fewer images cannot confirm a file: a value that rounds to the other side moves one image by far more than the mean of
many. They reject the file, or the yardstick, if

    its mean difference exceeds 10 % of the standard deviation
    it exceeds both five times the yardstick's and 5 % of the standard deviation (an engine)

or, if larger, the share of the mean that one image contributes when it is off by a whole standard deviation.

Some targets' engines round where training does not, on the way from one layer to the next (`rounds_between_layers`).
Only absolute bounds judge them: 10 % of the standard deviation, and 0.5 % of the clear images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbitcls.deploy.verification.certificate import Certificate

FEWEST_IMAGES = 100
"""Number of images needed to confirm a file."""
YARDSTICKS = 2.0
"""Largest mean difference of an engine, in multiples of that between float32 and float64."""
DEVIATIONS = 1e-3
"""Or this fraction of the outputs' standard deviation, if larger."""
GROSS_YARDSTICKS = 5.0
"""On fewer images: largest mean difference, in multiples of that between float32 and float64."""
GROSS_DEVIATIONS = 0.05
"""Or this fraction of the standard deviation, or 1 / number of images, if larger."""
IMAGES_PER_CHANGE = 1000
"""One in this many images without a tie may change its class; one image always may."""
MOST_DEVIATIONS = 0.02
"""Largest mean difference as a fraction of the standard deviation, unless the yardstick is larger."""
STEADY_YARDSTICKS = 1.25
"""In that case: largest mean difference, in multiples of the yardstick."""
CAP_DEVIATIONS = 0.05
"""Largest mean difference as a fraction of the standard deviation in any case, also for the yardstick."""
GROSS_MOST_DEVIATIONS = 0.1
"""On fewer images: this fraction, or 1 / number of images, if larger."""
TIED_DEVIATIONS = 0.1
"""An image is clear, whatever the yardstick, if its top two logits are this fraction of the deviation apart."""
ROUNDING_DEVIATIONS = 0.1
"""Largest mean difference of an engine that rounds between layers, as a fraction of the standard deviation."""
MOST_FLIPPED = 0.005
"""Fraction of the clear images that may change class, also for the yardstick; one image always may."""
LEGEND = (
    "agree: images with the same best class. mean, largest: absolute difference. identical: images with equal outputs. "
    "changed: images whose best class differs and was no tie. float64: the model itself in float64, the effect of "
    "rounding alone."
)
"""Meaning of the rows and columns of `Verification.table`."""


@dataclass(frozen=True)
class Comparison:
    """Difference between one output of one evaluation and the reference's.

    Attributes:
        name: `float64`, `integer`, or an engine's name.
        reference: Name of the reference: `float32` (or `float64`).
        output: `logits`, or `feature_0`, ….
        mean: Mean absolute difference.
        largest: Largest absolute difference.
        identical: Percentage of the images whose whole row is equal in float32.
        agreement: Percentage of the images with the same best class; None for features.
        changed: Number of images without a tie (see `Verification.untied`) whose best class differs; None for features.
        flipped: Number of images in `Verification.clear` whose best class differs; None for features.
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
        """Return the row of `Verification.table`."""
        name = self.name if self.output == "logits" else f"{self.name} {self.output}"
        agreement = "" if self.agreement is None else f"{self.agreement:.2f}"
        changed = "" if self.changed is None else str(self.changed)
        return (
            name,
            self.reference,
            agreement,
            f"{self.mean:.3g}",
            f"{self.largest:.3g}",
            f"{self.identical:.1f}",
            changed,
        )


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    Attributes:
        images: Number of images.
        untied: Number of images whose top two logits (of the float32 model) are not closer than the largest difference
            between float32 and float64; None for features.
        deviation: Standard deviation of each output of the float32 model, by output name; at most three times that of
            an element over the images.
        yardstick: float64 against float32, for each output.
        rows: Integer reference (if the model has integer layers) and engines against float32, for each output.
        exactness: Integer reference against float64, for each output: rounding of the final scales.
        largest_accumulator: Name of the integer layer with the largest possible sum, and that sum.
        float_layers: Quantized layers that are float in the integer reference, with the reason.
        clear: Number of images whose top two logits (of the float32 model) are at least a tenth of the deviation apart;
            None for features.
        cannot_run: Engines that cannot run the file and so do not judge it, with the reason.
        alone: Reasons why the file is rejected when some of the images run one at a time.
        rounding: Engines that round where training does not, between layers.
        certificates: One for each engine.
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
    rounding: frozenset[str] = frozenset()
    certificates: tuple[Certificate, ...] = ()

    @property
    def judged(self) -> bool:
        """True if there were enough images to confirm the file."""
        return self.images >= FEWEST_IMAGES

    @property
    def passed(self) -> bool:
        """True if no reason to reject the file was found; on fewer than 100 images that does not confirm it."""
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons why the file is rejected, one text each."""
        found = [reason for row in self.rows for reason in self._reasons_of(row)]
        return (*self._unusable, *found, *(f"images one at a time: {reason}" for reason in self.alone))

    def confirms(self, name: str) -> bool | None:
        """Return True if nothing speaks against the results of the engine `name`, whatever the others computed.

        None if nothing does, but the images were too few to confirm it.
        """
        against = [reason for row in self.rows if row.name == name for reason in self._reasons_of(row)]
        if self._unusable or against or any(reason.startswith(f"{name}:") for reason in self.alone):
            return False
        return True if self.judged else None

    @property
    def _unusable(self) -> list[str]:
        return [reason for row in self.yardstick if (reason := self._unsteady(row)) is not None]

    def _reasons_of(self, row: Comparison) -> list[str]:
        if row.name in self.rounding:
            return self._beyond(row, max(ROUNDING_DEVIATIONS, 0.0 if self.judged else 1 / self.images))
        mean = next(other.mean for other in self.yardstick if other.output == row.output)
        relative = (self._too_far(row, mean), self._too_many(row))
        return self._beyond(row, self._bound(row.output, mean)) or [reason for reason in relative if reason is not None]

    @property
    def warning(self) -> str | None:
        """Message for the user about a file that is neither confirmed nor rejected; None for any other file."""
        if self.judged or not self.passed:
            return None
        return (
            f"{self.images} images are too few to judge the file: {FEWEST_IMAGES} are needed to confirm it. Only a "
            "gross difference would have rejected it, and none was found."
        )

    @property
    def sentence(self) -> str:
        """Result of the engines in one sentence: changed classes, and the largest difference."""
        engines = [row for row in self.rows if row.name != "integer"] or list(self.rows)
        worst = max(engines, key=lambda row: (row.largest != row.largest, row.largest))  # NaN is the worst
        of = f"{_of(worst.largest, self.deviation[worst.output])} of their standard deviation"
        difference = f"{worst.output} differ by at most {worst.largest:.3g}, {of} ({worst.name})"
        ranked = [(round(self.images * (1 - row.agreement / 100)), row) for row in engines if row.agreement is not None]
        if not ranked:
            return f"On {self.images:,} images, {difference}."
        changed, row = max(ranked, key=lambda pair: pair[0])
        tied = changed - (row.changed or 0)
        ties = f", {tied} of them with their two best logits almost equal" if tied > 0 else ""
        return f"Of {self.images:,} images, {changed:,} changed their class{ties}; {difference}."

    @property
    def columns(self) -> tuple[str, ...]:
        """Column titles of `table` with units; the words are not broken on a terminal of 80 columns."""
        unit = "logits" if self.untied is not None else "outputs"
        differences = (f"mean\n{unit}", f"largest\n{unit}")
        return ("compared", "with", "agree\n%", *differences, "identical\n%", "changed\nimages")

    def table(self) -> list[tuple[str, ...]]:
        """Return rows for `print_table`, with the columns `columns`."""
        return [row.cells() for row in (*self.yardstick, *self.exactness, *self.rows)]

    def to_json(self) -> dict[str, Any]:
        """Return the verification as plain data, for the report."""
        return {
            **asdict(self),
            "rounding": sorted(self.rounding),
            "sentence": self.sentence,
            "judged": self.judged,
            "passed": self.passed,
            "reasons": list(self.reasons),
            "warning": self.warning,
        }

    def _allowed(self) -> tuple[float, float]:
        """Return the largest mean difference in yardsticks, and as a fraction of the standard deviation."""
        if self.judged:
            return YARDSTICKS, DEVIATIONS
        return GROSS_YARDSTICKS, max(GROSS_DEVIATIONS, 1 / self.images)

    def _bound(self, output: str, yardstick: float) -> float:
        """Return an engine's largest mean difference as a fraction of the standard deviation."""
        if not self.judged:
            return max(GROSS_MOST_DEVIATIONS, 1 / self.images)
        steady = STEADY_YARDSTICKS * yardstick / self.deviation[output] if self.deviation[output] > 0 else 0.0
        return min(CAP_DEVIATIONS, max(MOST_DEVIATIONS, steady)) if steady == steady else MOST_DEVIATIONS

    def _beyond(self, row: Comparison, part: float) -> list[str]:
        """Return why `row` exceeds the bounds: `part` of the standard deviation, and 0.5 % of the clear images."""
        reasons, deviation = [], self.deviation[row.output]
        if not row.mean <= part * deviation:  # also true for NaN
            reasons.append(
                f"{row.name}: {row.output} differ by {row.mean:.3g} on average, {_of(row.mean, deviation)} of their "
                f"standard deviation; at most {100 * part:.3g} % is allowed."
            )
        flipped, clear = row.flipped or 0, self.clear or 0
        if self.judged and flipped > max(1, int(MOST_FLIPPED * clear)):
            reasons.append(
                f"{row.name}: {flipped} of {clear} images change class although their top two logits are at least "
                f"{TIED_DEVIATIONS:g} standard deviations apart; at most {100 * MOST_FLIPPED:g} %, or one image, may."
            )
        return reasons

    def _unsteady(self, row: Comparison) -> str | None:
        """Return why the yardstick is unusable; None if it is usable."""
        reasons = self._beyond(row, CAP_DEVIATIONS if self.judged else max(GROSS_MOST_DEVIATIONS, 1 / self.images))
        if not reasons:
            return None
        return (
            f"{' '.join(reasons)} So the model itself gives different results in float32 and in float64, and its "
            "outputs cannot confirm any file: something in it is random or changes from call to call, a hook uses "
            "another model's weights, or rounding errors grow from layer to layer (many layers, few bits). Export "
            "without verification, and measure the exported model's accuracy: lbitcls test CONFIG FILE."
        )

    def _too_far(self, row: Comparison, yardstick: float) -> str | None:
        yardsticks, deviations = self._allowed()
        limit = max(yardsticks * yardstick, deviations * self.deviation[row.output])
        if row.mean <= limit:  # false for NaN
            return None
        return (
            f"{row.name}: {row.output} differ by {row.mean:.3g} on average, more than {limit:.3g}, the larger of "
            f"{yardsticks:g} times the difference of float32 and float64, and {deviations:.3g} standard deviations."
        )

    def _too_many(self, row: Comparison) -> str | None:
        if row.changed is None or self.untied is None or not self.judged:
            return None
        allowed = max(1, self.untied // IMAGES_PER_CHANGE)
        if row.changed <= allowed:
            return None
        return (
            f"{row.name}: {row.changed} of {self.untied} images without a tie change class; at most one in "
            f"{IMAGES_PER_CHANGE:,}, or one image, may."
        )


def _of(value: float, whole: float) -> str:
    return f"{100 * value / whole:.3g} %" if whole > 0 else "more than 0 %"

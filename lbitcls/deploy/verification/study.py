"""Sums over batches of images: differences between evaluations of a model, and the spread of its outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lbitcls.deploy.verification.live_model import Outputs
from lbitcls.deploy.verification.verdict import FEWEST_IMAGES, TIED_DEVIATIONS, Comparison, Verification
from lbitcls.utils.errors import CheckpointError

_OFFSETS = 3.0  # bound on the deviation of all elements, relative to that of one element over the images


class Study:
    """Sums over all batches: each evaluation against float32, and the integer reference against float64.

    Args:
        part: `model`: the only output is logits; `backbone`: each output is a feature.
    """

    def __init__(self, part: str) -> None:
        self.images = 0
        self._ranked = part == "model"
        self._spreads: dict[str, _Spread] = {}
        self._tallies: dict[tuple[str, str, str], _Tally] = {}

    def add(self, reference: Outputs, others: dict[str, Outputs]) -> None:
        """Add a batch: the float32 model's outputs, and those of the other evaluations by name."""
        self.images += len(reference[0])
        pairs = [(name, "float32", given, reference) for name, given in others.items()]
        if "integer" in others:
            pairs.append(("integer", "float64", others["integer"], others["float64"]))
        for index, values in enumerate(reference):
            if not values.isfinite().all():
                raise CheckpointError("the model's own outputs are not finite, so nothing can be compared with them.")
            self._spreads.setdefault(self._output(index), _Spread(self._ranked)).add(values)
        for name, against, given, expected in pairs:
            _check_shapes(name, given, expected)
            for index, (mine, other) in enumerate(zip(given, expected)):
                key = (name, against, self._output(index))
                self._tallies.setdefault(key, _Tally(self._ranked)).add(mine, other)

    def result(
        self, bound: tuple[str, int] | None, float_layers: dict[str, str], cannot_run: dict[str, str]
    ) -> Verification:
        """Return the verification's result."""
        untied = clear = None
        deviation = {output: spread.deviation() for output, spread in self._spreads.items()}
        if self._ranked:
            margins = torch.cat(self._spreads["logits"].margins)
            yardstick = self._tallies.get(("float64", "float32", "logits"))
            untied = margins >= (0.0 if yardstick is None else yardstick.largest)
            clear = margins >= TIED_DEVIATIONS * deviation["logits"]
        found = [tally.result(*key, untied, clear) for key, tally in self._tallies.items()]
        return Verification(
            images=self.images,
            untied=None if untied is None else int(untied.sum()),
            deviation=deviation,
            yardstick=tuple(row for row in found if row.name == "float64"),
            rows=tuple(row for row in found if row.name != "float64" and row.reference == "float32"),
            exactness=tuple(row for row in found if row.reference == "float64"),
            largest_accumulator=bound,
            float_layers=float_layers,
            clear=None if clear is None else int(clear.sum()),
            cannot_run=cannot_run,
        )

    def _output(self, index: int) -> str:
        return "logits" if self._ranked else f"feature_{index}"


def _check_shapes(name: str, given: Outputs, expected: Outputs) -> None:
    shapes = [[tuple(output.shape) for output in outputs] for outputs in (given, expected)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{name} outputs the shapes {shapes[0]}, the model {shapes[1]}: the file belongs to another model."
        )


class _Tally:
    """Sums over batches of the differences between two evaluations of one output."""

    def __init__(self, ranked: bool) -> None:
        self.largest = 0.0
        self._ranked = ranked
        self._total, self._elements, self._images, self._equal = 0.0, 0, 0, 0
        self._same_class: list[Tensor] = []

    def add(self, given: Tensor, expected: Tensor) -> None:
        """Add a batch."""
        difference = (given.double() - expected.double()).abs()
        self.largest = float(torch.maximum(difference.max(), difference.new_tensor(self.largest)))  # keeps a NaN
        self._total += float(difference.sum())
        self._elements += difference.numel()
        self._images += len(given)
        self._equal += int((given.float() == expected.float()).flatten(1).all(1).sum())
        if self._ranked:
            self._same_class.append(given.argmax(1) == expected.argmax(1))

    def result(self, name: str, reference: str, output: str, untied: Tensor | None, clear: Tensor | None) -> Comparison:
        """Return the means; `untied` and `clear` mark the images whose class should not change."""
        agreement = changed = flipped = None
        if untied is not None and clear is not None:
            same = torch.cat(self._same_class)
            agreement = 100 * int(same.sum()) / self._images
            changed, flipped = int((~same & untied).sum()), int((~same & clear).sum())
        mean, identical = self._total / self._elements, 100 * self._equal / self._images
        return Comparison(name, reference, output, mean, self.largest, identical, agreement, changed, flipped)


class _Spread:
    """Deviation of an output of the float32 model, and the distance of each image's top two logits.

    It is the standard deviation over all images and elements, but at most three times that of an element over the
    images: one logit that is always -1e4, of a masked class, would make the differences of all others look small.
    """

    def __init__(self, ranked: bool) -> None:
        self.margins: list[Tensor] = []
        self._ranked = ranked
        self._images, self._total, self._squares = 0, torch.zeros(()), torch.zeros(())
        self._first: Tensor | None = None  # subtracted, since the squares of large values leave no digits

    def add(self, values: Tensor) -> None:
        """Add a batch."""
        values = values.double()
        self._images += len(values)
        self._first = values[0] if self._first is None else self._first
        self._total = self._total + (values - self._first).sum(0)
        self._squares = self._squares + (values - self._first).square().sum(0)
        if self._ranked:
            padded = torch.nn.functional.pad(values, (0, 1), value=-torch.inf)  # a single class has no rival
            best = padded.topk(2, dim=1).values
            self.margins.append(best[:, 0] - best[:, 1])

    def deviation(self) -> float:
        """Return the deviation; few or identical images do not show how an element varies, and set no bound."""
        assert self._first is not None
        means, squares = self._total / self._images, self._squares / self._images
        variance = (squares - means**2).clamp(min=0).mean()
        overall, varying = float((variance + (means + self._first).var(correction=0)).sqrt()), float(variance.sqrt())
        return min(overall, _OFFSETS * varying) if self._images >= FEWEST_IMAGES and varying > 0 else overall

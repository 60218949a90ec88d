"""Compares the outputs of an exported model on real images with those of the model that was trained.

All are compared with float32, the fake-quantized model as `test` and `infer` run it: the very module that is given, not
a copy (`lbitcls.deploy.verification.live_model`).

    float64       a copy in float64; how far it is from float32 is the yardstick: rounding alone does that
    integer       the integer reference (`lbitcls.deploy.verification.integer`)
    openvino, …   each engine that judges the file, in float32 precision

A value within a rounding error of the middle between two levels falls on either side, by the order in which floats
are added, and a level of difference grows in the layers that follow; so nothing is exactly equal. An engine is judged
by bounds of its own, and against the yardstick (`lbitcls.deploy.verification.verdict`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.deploy.runtime.engine import Engine, load, load_usable
from lbitcls.deploy.runtime.metadata import read_info
from lbitcls.deploy.targets.base import find_target
from lbitcls.deploy.verification.integer import integer_model, largest_accumulator, layers_in_float
from lbitcls.deploy.verification.live_model import Evaluation, Outputs, as_tuple, evaluating, evaluation
from lbitcls.deploy.verification.reference import reference_model
from lbitcls.deploy.verification.verdict import FEWEST_IMAGES, TIED_DEVIATIONS, Comparison, Verification
from lbitcls.quant.calibration import images_of
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, LbitclsError, reason_of

_FLOAT64 = (
    "in float64, which does not run: {} Something in it keeps to float32, or a hook uses a module from outside of the "
    "copy: let it use the module and the tensors that it is given."
)
_ONE = "to take one image alone, which it does not: {}"
_ALONE = 4  # images that are also given one at a time
_OFFSETS = 3.0  # no more of what an output's elements differ by in the mean counts as their deviation


def verify(
    model: nn.Module,
    onnx_path: str | Path,
    batches: Iterable[Any],
    *,
    engines: Sequence[str] | None = None,
    threads: int | None = None,
) -> Verification:
    """Compare an exported file with the model it was made from.

    Args:
        model: what was exported, with its weights; it is run in eval, on its device, and has its mode again afterwards.
        onnx_path: the file.
        batches: float32 images (N, C, H, W), as the test pipeline leaves them, or what else
            `lbitcls.quant.calibration.images_of` takes; at least 100 images to confirm the file.
        engines: names of the engines that run the file; None: those that judge files of its target, without those that
            cannot run it (`Verification.cannot_run`).
        threads: of each engine; None: its own choice.

    Returns:
        All comparisons, whether the file passed, and why not.

    Raises:
        CheckpointError: the file gives other outputs than the model (their number or shape), no engine can run it, or
            the model's own outputs are not finite.
        ConfigError: the model cannot be copied, or its copy does not run in float64; `engines` is empty.
        DataError: there are no images.
        DependencyError: an engine's package is missing.
        NotInitializedError: a quantizer of the model has no first values.
    """
    loaded, cannot_run = _judges(onnx_path, engines, threads)
    part = loaded[0].info.part if loaded and loaded[0].info is not None else "model"
    integer = integer_model(model)
    bound = largest_accumulator(integer)
    others = {"float64": _in_float64(reference_model(model, torch.float64), part)}
    if bound is not None:
        others["integer"] = _in_float64(integer, part)
    others |= {engine.name: _engine_evaluation(engine) for engine in loaded}
    study, alone = _Study(part), _Study(part)
    with evaluating(model):
        anchor = evaluation(model, part)
        for number, images in enumerate(map(images_of, batches)):
            study.add(anchor(images), {name: run(images) for name, run in others.items()})
            # A tracer takes the batch for more than one image, so what the model does with one is not in the file.
            for single in images[:_ALONE].split(1) if number == 0 else ():
                alone.add(_guarded(anchor, single, _ONE), {name: run(single) for name, run in others.items()})
    if not study.images:
        raise DataError("verification: there are no images; give at least one batch.")
    reasons = alone.result(bound, {}, {}).reasons
    return replace(study.result(bound, layers_in_float(integer), cannot_run), alone=reasons)


def _judges(
    path: str | Path, engines: Sequence[str] | None, threads: int | None
) -> tuple[list[Engine], dict[str, str]]:
    """The engines that judge a file, and the others of its target, that cannot run it, with the reason."""
    if engines is not None:
        if not engines:
            raise ConfigError("engines names at least one engine: without one nothing runs the file.")
        return [load(path, engine, threads=threads) for engine in engines], {}
    info = read_info(path)
    target = "cpu" if info is None else info.target
    judges = info.engines if info is not None and info.engines is not None else find_target(target).engines
    loaded, cannot_run = load_usable(path, judges, threads)
    if not loaded:
        raise CheckpointError(f"no engine runs {path}: {'; '.join(f'{n}: {why}' for n, why in cannot_run.items())}")
    return loaded, cannot_run


def _in_float64(copied: nn.Module, part: str) -> Evaluation:
    """Images to the outputs of a copy of the model."""
    run = evaluation(copied, part, torch.float64)

    return lambda images: _guarded(run, images, _FLOAT64)


def _guarded(run: Evaluation, images: Tensor, complaint: str) -> Outputs:
    """`run(images)`; `ConfigError` with the reason in `complaint` for whatever the model's code raises."""
    try:
        return run(images)
    except LbitclsError:
        raise
    except Exception as error:
        raise ConfigError(f"verification needs the model {complaint.format(reason_of(error))}") from error


def _engine_evaluation(engine: Engine) -> Evaluation:
    def run(images: Tensor) -> Outputs:
        outputs = engine.predict(images.float().cpu().numpy())
        return tuple(torch.from_numpy(array) for array in as_tuple(outputs))

    return run


class _Study:
    """All sums over the batches: each evaluation beside float32, and the integer reference beside float64.

    Args:
        part: `model`: there is one output, logits; `backbone`: each output is a feature.
    """

    def __init__(self, part: str) -> None:
        self.images = 0
        self._ranked = part == "model"
        self._spreads: dict[str, _Spread] = {}
        self._tallies: dict[tuple[str, str, str], _Tally] = {}

    def add(self, reference: Outputs, others: dict[str, Outputs]) -> None:
        """Count a batch: the float32 model's outputs, and those of the other evaluations by their names."""
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
        """What was found."""
        untied = clear = None
        deviation = {output: spread.deviation() for output, spread in self._spreads.items()}
        if self._ranked:
            margins = torch.cat(self._spreads["logits"].margins)
            untied = margins >= self._tallies["float64", "float32", "logits"].largest
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
            f"{name} gives outputs of the shapes {shapes[0]}, the model {shapes[1]}: the file is another model's."
        )


class _Tally:
    """Differences between two evaluations of one output, summed over batches."""

    def __init__(self, ranked: bool) -> None:
        self.largest = 0.0
        self._ranked = ranked
        self._total, self._elements, self._images, self._equal = 0.0, 0, 0, 0
        self._same_class: list[Tensor] = []

    def add(self, given: Tensor, expected: Tensor) -> None:
        """Count a batch."""
        difference = (given.double() - expected.double()).abs()
        self.largest = float(torch.maximum(difference.max(), difference.new_tensor(self.largest)))  # keeps a NaN
        self._total += float(difference.sum())
        self._elements += difference.numel()
        self._images += len(given)
        self._equal += int((given.float() == expected.float()).flatten(1).all(1).sum())
        if self._ranked:
            self._same_class.append(given.argmax(1) == expected.argmax(1))

    def result(self, name: str, reference: str, output: str, untied: Tensor | None, clear: Tensor | None) -> Comparison:
        """The means; `untied` and `clear` mark the images whose class should not change."""
        agreement = changed = flipped = None
        if untied is not None and clear is not None:
            same = torch.cat(self._same_class)
            agreement = 100 * int(same.sum()) / self._images
            changed, flipped = int((~same & untied).sum()), int((~same & clear).sum())
        mean, identical = self._total / self._elements, 100 * self._equal / self._images
        return Comparison(name, reference, output, mean, self.largest, identical, agreement, changed, flipped)


class _Spread:
    """Deviation of an output of the float32 model, and how far apart each image's two best logits are.

    It is the standard deviation over all images and elements, but at most three times that of an element over the
    images: one logit that is always -1e4, of a class that is masked, would make all others' differences look small.
    """

    def __init__(self, ranked: bool) -> None:
        self.margins: list[Tensor] = []
        self._ranked = ranked
        self._images, self._total, self._squares = 0, torch.zeros(()), torch.zeros(())
        self._first: Tensor | None = None  # subtracted, since the squares of large values leave no digits

    def add(self, values: Tensor) -> None:
        """Count a batch."""
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
        """The deviation; few images, or ones that are all the same, do not tell how an element varies."""
        assert self._first is not None
        means, squares = self._total / self._images, self._squares / self._images
        variance = (squares - means**2).clamp(min=0).mean()
        overall, varying = float((variance + (means + self._first).var(correction=0)).sqrt()), float(variance.sqrt())
        return min(overall, _OFFSETS * varying) if self._images >= FEWEST_IMAGES and varying > 0 else overall

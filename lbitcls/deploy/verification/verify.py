"""Compares the outputs of an exported model on real images with those of the trained model.

The reference of all comparisons is float32, the fake-quantized model as `test` and `infer` run it: the given module
itself, not a copy (`lbitcls.deploy.verification.live_model`).

    float64       a copy in float64; its distance from float32 is the yardstick: the effect of rounding alone
    integer       the integer reference (`lbitcls.deploy.verification.integer`)
    openvino, …   each engine that judges the file, in float32 precision

A value within a rounding error of the middle between two levels falls on either side, depending on the order of float
additions, and a difference of one level grows in later layers; so nothing is exactly equal. An engine is judged by its
own bounds and against the yardstick (`lbitcls.deploy.verification.verdict`).
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
from lbitcls.deploy.verification.certificate import TimedEngine, certify
from lbitcls.deploy.verification.integer import integer_model, largest_accumulator, layers_in_float
from lbitcls.deploy.verification.live_model import Evaluation, Outputs, as_tuple, evaluating, evaluation
from lbitcls.deploy.verification.reference import reference_model
from lbitcls.deploy.verification.verdict import FEWEST_IMAGES, TIED_DEVIATIONS, Comparison, Verification
from lbitcls.quant.calibration import images_of
from lbitcls.registry import TARGETS
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, LbitclsError, reason_of

_FLOAT64 = (
    "to run in float64, which fails: {} Something in it is fixed to float32, or a hook uses a module outside of the "
    "copy: let it use the module and the tensors that it receives."
)
_ONE = "to accept a single image, which fails: {}"
_ALONE = 4  # images that are also run one at a time
_OFFSETS = 3.0  # bound on the deviation of all elements, relative to that of one element over the images


def verify(
    model: nn.Module,
    path: str | Path,
    batches: Iterable[Any],
    *,
    engines: Sequence[str] | None = None,
    threads: int | None = None,
) -> Verification:
    """Compare an exported model with the model it was exported from.

    Args:
        model: Model that was exported, with its weights; it runs in eval mode, on its device, and its mode is restored.
        path: Exported file or folder.
        batches: float32 images (N, C, H, W), as the test pipeline returns them, or anything else that
            `lbitcls.quant.calibration.images_of` accepts; at least 100 images to confirm the file.
        engines: Names of the engines that run the file; None: those that judge files of its target, without those that
            cannot run it (`Verification.cannot_run`).
        threads: Number of threads of each engine; None: its own choice.

    Returns:
        All comparisons, and the verdict with its reasons.

    Raises:
        CheckpointError: The file's outputs differ from the model's in number or shape, no engine can run it, or the
            model's own outputs are not finite.
        ConfigError: The model cannot be copied, or its copy does not run in float64; `engines` is empty.
        DataError: There are no images.
        DependencyError: An engine's package is missing.
        NotInitializedError: A quantizer of the model is not initialized.
    """
    loaded, cannot_run = _judges(path, engines, threads)
    timed = [TimedEngine(engine) for engine in loaded]
    part = loaded[0].info.part if loaded and loaded[0].info is not None else "model"
    integer = integer_model(model)
    bound = largest_accumulator(integer)
    others = {"float64": _in_float64(reference_model(model, torch.float64), part)}
    if bound is not None:
        others["integer"] = _in_float64(integer, part)
    others |= {run.engine.name: _engine_evaluation(run) for run in timed}
    rounding = frozenset(engine.name for engine in loaded if _rounds(engine))
    study, alone = _Study(part), _Study(part)
    with evaluating(model):
        anchor = evaluation(model, part)
        for number, images in enumerate(map(images_of, batches)):
            study.add(anchor(images), {name: run(images) for name, run in others.items()})
            # The tracer assumes a batch of several images, so the model's behavior for one image is not in the file.
            for single in images[:_ALONE].split(1) if number == 0 else ():
                alone.add(_guarded(anchor, single, _ONE), {name: run(single) for name, run in others.items()})
    if not study.images:
        raise DataError("there are no images to verify with; give at least one batch.")
    reasons = replace(alone.result(bound, {}, {}), rounding=rounding).reasons
    found = replace(study.result(bound, layers_in_float(integer), cannot_run), alone=reasons, rounding=rounding)
    reference = f"the trained model in PyTorch {torch.__version__}, float32"
    given = [certify(run, found.rows, found.deviation, reference, found.images, found.passed) for run in timed]
    return replace(found, certificates=tuple(given))


def _judges(
    path: str | Path, engines: Sequence[str] | None, threads: int | None
) -> tuple[list[Engine], dict[str, str]]:
    """Return the engines that judge a file, and those of its target that cannot run it, with the reason."""
    if engines is not None:
        if not engines:
            raise ConfigError("engines must name at least one engine; got none.")
        return [load(path, engine, threads=threads) for engine in engines], {}
    info = read_info(path)
    target = "cpu" if info is None else info.target
    judges = info.engines if info is not None and info.engines is not None else find_target(target).engines
    loaded, cannot_run = load_usable(path, judges, threads)
    if not loaded:
        raise CheckpointError(f"no engine runs {path}: {'; '.join(f'{n}: {why}' for n, why in cannot_run.items())}")
    return loaded, cannot_run


def _in_float64(copied: nn.Module, part: str) -> Evaluation:
    """Return the evaluation of a copy of the model in float64."""
    run = evaluation(copied, part, torch.float64)

    return lambda images: _guarded(run, images, _FLOAT64)


def _guarded(run: Evaluation, images: Tensor, complaint: str) -> Outputs:
    """Return `run(images)`; raise `ConfigError` with the reason in `complaint` for any error in the model's code."""
    try:
        return run(images)
    except LbitclsError:
        raise
    except Exception as error:
        raise ConfigError(f"verification needs the model {complaint.format(reason_of(error))}") from error


def _rounds(engine: Engine) -> bool:
    """Return True if the engine rounds between layers, as its file's target says."""
    return engine.info is not None and getattr(TARGETS.get(engine.info.target), "rounds_between_layers", False)


def _engine_evaluation(engine: TimedEngine) -> Evaluation:
    def run(images: Tensor) -> Outputs:
        outputs = engine(images.float().cpu().numpy())
        return tuple(torch.from_numpy(array) for array in as_tuple(outputs))

    return run


class _Study:
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

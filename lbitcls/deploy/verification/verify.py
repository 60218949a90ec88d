"""Compares the outputs of an exported model on real images with those of the trained model.

The reference of all comparisons is float32, the fake-quantized model as `test` and `infer` run it: the given module
itself, not a copy (`lbitcls.deploy.verification.live_model`).

    float64       a copy in float64; its distance from float32 is the yardstick: the effect of rounding alone
    integer       the integer reference (`lbitcls.deploy.verification.integer`)
    rounded       a `.tflite` file in exact integers, with the rounding between layers that LiteRT defines
                  (`lbitcls.deploy.verification.tflite_reference`)
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

from lbitcls.deploy.verification.integer import integer_model, largest_accumulator, layers_in_float
from lbitcls.deploy.verification.judges import TimedEngine, certify, engine_evaluation, judges, rounds
from lbitcls.deploy.verification.live_model import Evaluation, Outputs, evaluating, evaluation
from lbitcls.deploy.verification.reference import reference_model
from lbitcls.deploy.verification.study import Study
from lbitcls.deploy.verification.tflite_reference import SUFFIX, TFLiteReference, UnknownOperationError
from lbitcls.deploy.verification.verdict import Verification
from lbitcls.quant.calibration import images_of
from lbitcls.utils.errors import ConfigError, DataError, LbitclsError, reason_of

_FLOAT64 = (
    "to run in float64, which fails: {} Something in it is fixed to float32, or a hook uses a module outside of the "
    "copy: let it use the module and the tensors that it receives."
)
_ONE = "to accept a single image, which fails: {}"
_ROUNDED = "rounded"  # row of a `.tflite` file in exact integers
_ALONE = 4  # images that are also run one at a time


def verify(
    model: nn.Module,
    path: str | Path,
    batches: Iterable[Any],
    *,
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    approximate: bool = False,
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
        approximate: Judge all engines by absolute bounds alone, as those that round between layers: for a file with
            8-bit skip connections and a model without them.

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
    loaded, cannot_run = judges(path, engines, threads)
    timed = [TimedEngine(engine) for engine in loaded]
    part = loaded[0].info.part if loaded and loaded[0].info is not None else "model"
    integer = integer_model(model)
    bound = largest_accumulator(integer)
    others = {"float64": _in_float64(reference_model(model, torch.float64), part)}
    if bound is not None:
        others["integer"] = _in_float64(integer, part)
    others |= {run.engine.name: engine_evaluation(run) for run in timed}
    rounding = frozenset(engine.name for engine in loaded if approximate or rounds(engine))
    interpreted = _interpreted(path)
    if interpreted is not None:
        others[_ROUNDED], rounding = interpreted, rounding | {_ROUNDED}
    study, alone = Study(part), Study(part)
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
    given = [certify(run, found, reference, found.confirms(run.engine.name)) for run in timed]
    return replace(found, certificates=tuple(given))


def _in_float64(copied: nn.Module, part: str) -> Evaluation:
    """Return the evaluation of a copy of the model in float64."""
    run = evaluation(copied, part, torch.float64)

    return lambda images: _guarded(run, images, _FLOAT64)


def _interpreted(path: str | Path) -> Evaluation | None:
    """Return the evaluation of a `.tflite` file in exact integers; None for other files or unknown operations."""
    if Path(path).suffix.lower() != SUFFIX:
        return None
    try:
        reference = TFLiteReference(path)
    except UnknownOperationError:
        return None
    return lambda images: tuple(torch.from_numpy(array) for array in reference(images.float().cpu().numpy()))


def _guarded(run: Evaluation, images: Tensor, complaint: str) -> Outputs:
    """Return `run(images)`; raise `ConfigError` with the reason in `complaint` for any error in the model's code."""
    try:
        return run(images)
    except LbitclsError:
        raise
    except Exception as error:
        raise ConfigError(f"verification needs the model {complaint.format(reason_of(error))}") from error

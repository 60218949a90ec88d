"""First lines of a run: what the log file contains of data and model, and the plan in one line."""

from __future__ import annotations

from typing import cast

from torch import nn

from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.hooks.progressive_hook import ProgressiveHook
from lbitcls.core.runner import EpochRunner
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.protocols import BatchLoader, Classifier
from lbitcls.settings.sections import Settings
from lbitcls.tracking.model_bits import describe_quantization
from lbitcls.utils.dist import world_size
from lbitcls.utils.logging import DETAIL, DISPLAY

_CLASSES = 10  # class names that fit in the line


def describe_run(runner: EpochRunner) -> None:
    """Log the parts of the data, the classes, the batch shape, and the parameters of each part of the model."""
    loader = runner.loader
    counts = {"train": len(loader.dataset)}
    validation = runner.find(EvaluationHook)
    if validation is not None:
        counts["val"] = len(validation.loader.dataset)
    images = ", ".join(f"{name} {count:,} images" for name, count in counts.items())
    runner.logger.info("Data: %s; %s", images, _classes(cast("Classifier", runner.module)), extra=DETAIL)
    shape = _batch_shape(loader, runner.seed)
    runner.logger.info("A batch: img %s, gt_label (%d,)", shape, loader.batch_size, extra=DETAIL)
    runner.logger.info("Parameters: %s", "; ".join(parameters(runner.module)), extra=DETAIL)


def show_plan_line(settings: Settings, runner: EpochRunner) -> None:
    """Show model, method, bits, quantized layers, parameters, teacher and device in one line of the terminal."""
    backbone = settings.model.get("backbone") or {}
    name = "-".join(str(backbone[key]) for key in ("type", "depth") if key in backbone) or type(runner.module).__name__
    trained, frozen = _count(runner.module)
    parts = [describe_quantization(runner.module), f"{trained + frozen:,} parameters"]
    if frozen:
        parts[-1] += f", {trained:,} trained"
    calibration = runner.find(CalibrationHook)
    if calibration is not None and not calibration.done and calibration.epoch > runner.epoch:
        parts[0] += f" from epoch {calibration.epoch + 1}"
    if settings.distill is not None:
        parts.append(f"teacher {settings.distill.teacher.file}")
    progressive = runner.find(ProgressiveHook)
    if progressive is not None:
        parts.insert(1, progressive.describe())
    device = str(runner.step.device) + (f", {world_size()} processes" if world_size() > 1 else "")
    runner.logger.info("%s: %s", name, "; ".join([*parts, device]), extra=DISPLAY)


def parameters(model: nn.Module) -> list[str]:
    """Describe the number of a model's parameters, in total and by part, and how many of them are trained.

    Example:
        >>> parameters(nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1).requires_grad_(False)))
        ['5 in all, 3 trained, 2 frozen', '0: 3 trained', '1: 2 frozen']
    """
    parts = [(name, part) for name, part in model.named_children() if next(part.parameters(), None) is not None]
    return [f"{sum(_count(model)):,} in all, {_said(model)}", *(f"{name}: {_said(part)}" for name, part in parts)]


def _said(module: nn.Module) -> str:
    words = zip(_count(module), ("trained", "frozen"), strict=True)
    return ", ".join(f"{number:,} {word}" for number, word in words if number)


def _count(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of (trained, frozen) parameters."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in module.parameters()) - trained


def _classes(model: Classifier) -> str:
    names = [str(name) for name in model.CLASSES or ()]
    if not names:
        return f"{model.num_classes} classes"
    more = ", …" if len(names) > _CLASSES else ""
    return f"{len(names):,} classes: {', '.join(names[:_CLASSES])}{more}"


def _batch_shape(loader: BatchLoader, seed: int) -> str:
    """Return (N, C, H, W) as text: N is the loader's batch size, the rest the shape of the first readable image."""
    for index in loader.order(0):
        try:
            shape = tuple(loader.dataset.sample(seed, 0, int(index))["img"].shape)
        except UnreadableImage:
            continue
        return str((loader.batch_size, *shape))
    return "unknown"

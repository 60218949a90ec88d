"""First lines of a run's log: images, classes, batch shape, model parameters."""

from __future__ import annotations

from typing import cast

from torch import nn

from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.runner import EpochRunner
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.protocols import BatchLoader, Classifier

_CLASSES = 10  # class names that fit in the line


def describe_run(runner: EpochRunner) -> None:
    """Log the parts of the data, the classes, the batch shape, and the parameters of each part of the model."""
    loader = runner.loader
    counts = {"train": len(loader.dataset)}
    validation = runner.find(EvaluationHook)
    if validation is not None:
        counts["val"] = len(validation.loader.dataset)
    images = ", ".join(f"{name} {count:,} images" for name, count in counts.items())
    runner.logger.info("Data: %s; %s", images, _classes(cast("Classifier", runner.module)))
    runner.logger.info("A batch: img %s, gt_label (%d,)", _batch_shape(loader, runner.seed), loader.batch_size)
    runner.logger.info("Parameters: %s", "; ".join(parameters(runner.module)))


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

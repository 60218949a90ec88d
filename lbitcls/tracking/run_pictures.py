"""Figures of a run: their images and predictions, and the figures drawn at the end of every training run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from lbitcls.analysis.confusion import draw_confusion
from lbitcls.analysis.curves import draw_results, read_run
from lbitcls.analysis.figures import pixels, save
from lbitcls.analysis.pictures import Prediction, draw_batch, draw_predictions
from lbitcls.core.answers import Answers, answers_of
from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.hooks.work_dir import PICTURES
from lbitcls.core.runner import EpochRunner
from lbitcls.datasets import build_dataloader
from lbitcls.datasets.base import BaseDataset
from lbitcls.datasets.pipelines.color import Normalize
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.datasets.subset import Subset
from lbitcls.protocols import BatchLoader, predictor
from lbitcls.settings.sections import Settings
from lbitcls.utils.dist import is_main
from lbitcls.utils.logging import DETAIL, track
from lbitcls.utils.shards import has_shards

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Show = Callable[[EpochRunner, str, np.ndarray], None]
SHOWN = 24  # images in a grid
MOST = 10_000  # maximum number of images predicted anew for a run's confusion matrix


def mixed(dataset: BaseDataset, number: int) -> list[int]:
    """Return the positions of `number` samples, or of all, in a fixed order that mixes the classes."""
    return np.random.default_rng(0).permutation(len(dataset))[:number].tolist()


def read_images(dataset: BaseDataset, indices: Iterable[int], seed: int = 0) -> dict[int, np.ndarray]:
    """Return the samples `indices` for display, as the model sees them in the first epoch: (H, W) or (H, W, 3) in 0-1.

    With `on_error='skip'` unreadable images are left out.
    """
    steps = dataset.pipeline.transforms
    undo = [step.undo if isinstance(step, Normalize) else _undo_v2(step) for step in steps]
    found = {}
    for index in indices:
        try:
            image = dataset.sample(seed, 0, index)["img"]
        except UnreadableImage:
            if dataset.on_error == "raise":
                raise
            continue
        for restore in undo:
            image = image if restore is None else restore(image)
        array = image.clamp(0, 1).permute(1, 2, 0).numpy()
        found[index] = array[:, :, 0] if array.shape[2] == 1 else array
    return found


def _undo_v2(step: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return the inverse of a step that is torchvision's `Normalize`; None for any other step."""
    function: Any = getattr(step, "function", None)
    if type(function).__name__ != "Normalize":
        return None
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (function.mean, function.std))
    return lambda image: image * std + mean


@torch.no_grad()
def predict(
    model: nn.Module,
    dataset: BaseDataset,
    indices: Sequence[int],
    device: torch.device,
    batch: int,
    workers: int = 0,
    shown: bool = False,
) -> tuple[list[Prediction], int]:
    """Return the predictions of `model`, in eval mode, for the samples `indices`, and its number of classes.

    There is no communication with other processes. With `on_error='skip'` unreadable images are left out. `shown`
    displays a progress bar on a terminal.
    """
    was_training = model.training
    model.eval()
    loader = build_dataloader(Subset(dataset, list(indices)), batch, workers)
    positions = torch.tensor(indices)
    found, classes = [], 0
    try:
        answer = predictor(model)
        for data in track(loader, len(loader), "predicting", shown):
            logits = answer(data["img"].to(device)).float().cpu()
            classes = logits.shape[1]
            found += read_predictions(logits, data["gt_label"], positions[data["index"]])
    finally:
        model.train(was_training)
        loader.close()
    return found, classes


def read_predictions(logits: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> list[Prediction]:
    """Convert logits (N, K) to predictions for the images `indices` (N,) of a data set with true `labels` (N,)."""
    return predictions_of(answers_of(logits, labels, indices))


def predictions_of(answers: Answers) -> list[Prediction]:
    """Return the predictions in `answers`, in their order."""
    rows = zip(answers.samples.tolist(), answers.probabilities.tolist(), strict=True)
    return [Prediction(*sample, *probabilities) for sample, probabilities in rows]


def confusion_of(predictions: Sequence[Prediction], classes: int) -> np.ndarray:
    """Return the confusion matrix: counts (K, K), rows by true class."""
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, ([p.label for p in predictions], [p.predicted for p in predictions]), 1)
    return confusion


def draw_run(settings: Settings, runner: EpochRunner, show: Iterable[Show] = ()) -> None:
    """Write the figures of a complete run to its work directory, and pass each to all functions in `show`.

    A figure that cannot be drawn only causes a warning. Rank 0 draws.
    """
    if not is_main() or not settings.log_config.pictures:
        return
    began = time.monotonic()
    drawn = []
    for name, draw in _drawers(settings.data.workers_per_gpu, runner).items():
        try:
            path = save(draw(), runner.work_dir / name)
            for function in show:
                function(runner, path.stem, pixels(path))
        except Exception as error:  # whatever it is, the run is complete: a figure must not fail it
            runner.logger.warning("Could not draw %s: %s: %s", name, type(error).__name__, error)
        else:
            drawn.append(name)
    said = ", ".join(drawn) or "none"
    runner.logger.info("Figures (%.1f s): %s", time.monotonic() - began, said, extra=DETAIL)


def _drawers(workers: int, runner: EpochRunner) -> dict[str, Callable[[], Figure]]:
    """Return the function that draws each figure, by file name; without validation there are two."""
    results, train_batch, val_predictions, confusion = PICTURES
    validation = runner.find(EvaluationHook)
    drawers = {
        results: lambda: _results(runner, validation),
        train_batch: lambda: batch_figure(runner.loader, SHOWN),
    }
    if validation is None or (validation.answers is None and has_shards(runner.eval_model)):  # rank 0 alone draws
        return drawers
    loader = validation.loader
    dataset = cast(BaseDataset, loader.dataset)
    said = cache(lambda: _validated(runner, validation, dataset, workers))

    def shown() -> list[Prediction]:
        known = {p.index: p for p in said()[0]}
        return [known[index] for index in mixed(dataset, len(dataset)) if index in known][:SHOWN]

    def counted() -> Figure:
        found, classes = said()
        title = "Validation" if len(dataset) <= MOST else f"Validation: {len(found):,} of {len(dataset):,} images"
        return draw_confusion(confusion_of(found, classes), dataset.CLASSES, title)

    return {
        **drawers,
        val_predictions: lambda: predictions_figure(dataset, shown(), "Validation images"),
        confusion: counted,
    }


def _validated(
    runner: EpochRunner, validation: EvaluationHook, dataset: BaseDataset, workers: int
) -> tuple[list[Prediction], int]:
    """Return the predictions of the run's last validation of these weights, or else new ones, and the classes' number.

    New ones are of at most `MOST` images.
    """
    answers = validation.answers
    if answers is not None:
        return predictions_of(answers), answers.classes
    chosen = mixed(dataset, MOST)
    return predict(runner.eval_model, dataset, chosen, runner.step.device, validation.loader.batch_size, workers)


def _results(runner: EpochRunner, validation: EvaluationHook | None) -> Figure:
    calibration = runner.find(CalibrationHook)
    run = read_run(runner.work_dir)
    return draw_results(run, validation.best if validation else {}, calibration.epoch if calibration else 0)


def batch_figure(
    loader: BatchLoader, number: int, title: str = "Training images, as the model sees them", columns: int | None = None
) -> Figure:
    """Draw a grid of the first images that `loader` reads in its first epoch."""
    dataset = cast(BaseDataset, loader.dataset)
    images = read_images(dataset, loader.order(0)[:number].tolist(), loader.seed)
    labels = [int(dataset.labels[index]) for index in images]
    return draw_batch(list(images.values()), labels, dataset.CLASSES, title, columns)


def predictions_figure(
    dataset: BaseDataset,
    predictions: Sequence[Prediction],
    title: str,
    columns: int | None = None,
    with_files: bool = False,
) -> Figure:
    """Draw a grid of `predictions` with their images, and with the images' file names below if `with_files`."""
    images = read_images(dataset, [p.index for p in predictions])
    files = [PurePath(dataset.describe(p.index)).name for p in predictions] if with_files else None
    shown = [images[p.index] for p in predictions]
    return draw_predictions(shown, predictions, dataset.CLASSES, title, columns, files)

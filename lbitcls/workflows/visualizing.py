"""Draws a batch, predictions, the worst errors or the confusion matrix: `lbitcls visualize`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from lbitcls.analysis.confusion import draw_confusion
from lbitcls.analysis.figures import check_path, pixels, save
from lbitcls.analysis.pictures import Prediction
from lbitcls.assembly.session import Session, load_data, open_session
from lbitcls.datasets.base import BaseDataset
from lbitcls.inference.onnx_classifier import OnnxClassifier
from lbitcls.protocols import Classifier
from lbitcls.settings.sections import ConfigLike, Settings, read_settings
from lbitcls.tracking.board import write_pictures
from lbitcls.tracking.run_pictures import SHOWN, batch_figure, confusion_of, mixed, predict, predictions_figure
from lbitcls.utils.errors import CheckpointError, ConfigError, suggest
from lbitcls.utils.files import check_writable, write_whole
from lbitcls.workflows.class_results import name_of
from lbitcls.workflows.testing import open_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lbitcls.inference.onnx_model import ExportedModel

KINDS = ("batch", "predictions", "errors", "confusion")


def visualize(
    kind: str,
    cfg: ConfigLike,
    model: str | Path | nn.Module | Classifier | None = None,
    *,
    out: str | Path | None = None,
    num_images: int | None = None,
    rows: int | None = None,
    cols: int | None = None,
    split: str | None = None,
    data_root: str | None = None,
    engine: str | None = None,
    threads: int | None = None,
    tensorboard: bool = False,
) -> Figure:
    """Draw images of a data set, or a model's predictions on it. A notebook shows the returned figure.

    Args:
        kind: `'batch'`: images of the first training batch, augmented, with their labels; `'predictions'`: images
            with the predicted class, its confidence, and the true class if they differ; `'errors'`: the errors,
            most confident first, with their file names; `'confusion'`: the confusion matrix.
        cfg: Config.
        model: Model in memory, used unchanged (such as one from `init_model`); a checkpoint of the config's model; or
            a model exported from it. None: the best checkpoint in the work directory. A batch needs no model.
        out: File for the figure (`.png`, `.svg`, `.pdf`, `.jpg`); None: the figure is not written. For `'errors'`, a
            `.csv` file next to it lists all errors, most confident first.
        num_images: Maximum number of images in the figure; None: 24, or as many as `rows` × `cols`. The confusion
            matrix always covers the whole set.
        rows: Maximum number of rows of the image grid; None: as `num_images` needs.
        cols: Images per row; None: chosen from their number.
        split: Part of `data`; None: `train` for a batch, else `val`, or `test` if the config has no `val`.
        data_root: Folder to search for relative data paths (`--data-root`).
        engine: Engine for an exported model; None: the first that judges files of its target.
        threads: Number of threads of the engine; None: its own choice.
        tensorboard: True: also write the figure to `tf_logs` in the work directory.

    Raises:
        ConfigError: an unknown kind or format, a number below 1, or more images than fit into the grid.
        CheckpointError: the checkpoint is missing, or another model's.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no figure '{kind}'{suggest(kind, KINDS)} Known: {', '.join(KINDS)}.")
    grid = _grid(num_images, rows, cols)
    table = None
    if out is not None:
        path = check_path(out)
        table = check_writable(path.with_suffix(".csv"), "--out (the list of errors)") if kind == "errors" else None
    settings = read_settings(cfg)
    settings.require(("data",) if kind == "batch" else ("model", "data"), "visualize")
    with open_session(settings) as session:
        if kind == "batch":
            figure = _batch(settings, session, split or "train", grid, data_root)
        else:
            split = split or ("val" if settings.data.val is not None else "test")
            shown = _best_checkpoint(settings.run_folder) if model is None else model
            figure = _said(kind, settings, session, shown, split, grid, data_root, engine, threads, table)
        if out is not None:
            session.logger.info("Wrote %s", save(figure, out))
        if tensorboard:
            _to_tensorboard(figure, kind, settings.run_folder)
    return figure


def _grid(number: int | None, rows: int | None, cols: int | None) -> tuple[int, int | None]:
    """Return the maximum number of images, and the images per row (None: chosen from their number)."""
    for name, value in (("--num-images", number), ("rows", rows), ("cols", cols)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} must be an integer ≥ 1; got {value!r}.")
    if rows is not None and cols is None:
        cols = -(-(number or SHOWN) // rows)
    room = None if rows is None or cols is None else rows * cols
    if number is not None and room is not None and number > room:
        raise ConfigError(f"--num-images must be at most {room} for {rows} rows of {cols} images; got {number}.")
    return number or room or SHOWN, cols


def default_target(kind: str, cfg: ConfigLike) -> Path:
    """Return the command's default path of a figure, in the config's work directory."""
    return read_settings(cfg).run_folder / f"{kind}.png"


def _best_checkpoint(folder: Path) -> Path:
    found = next((path for name in ("best_top-1.pth", "latest.pth") if (path := folder / name).exists()), None)
    if found is None:
        raise CheckpointError(f"there is no best_top-1.pth or latest.pth in {folder}; name the checkpoint to use.")
    return found


def _batch(
    settings: Settings, session: Session, split: str, grid: tuple[int, int | None], data_root: str | None
) -> Figure:
    _, loader = load_data(settings, split, "visualize", session, seed=settings.seed or 0, data_root=data_root)
    return batch_figure(loader, grid[0], f"data.{split}: images as the model sees them", grid[1])


def _said(
    kind: str,
    settings: Settings,
    session: Session,
    shown: str | Path | nn.Module | Classifier,
    split: str,
    grid: tuple[int, int | None],
    data_root: str | None,
    engine: str | None,
    threads: int | None,
    table: Path | None,
) -> Figure:
    """Draw the predictions on `data.<split>` of `shown`, a model or a model's file; list errors in `table`."""
    dataset, loader = load_data(settings, split, "visualize", session, data_root=data_root)
    model, device, name = _opened(settings, shown, split, dataset, session, engine, threads)
    number, columns = grid
    indices = mixed(dataset, number if kind == "predictions" else len(dataset))
    workers = settings.data.workers_per_gpu if len(indices) > loader.batch_size else 0
    found, classes = predict(model, dataset, indices, device, loader.batch_size, workers, shown=True)
    title = f"{name} on data.{split}"
    if kind == "predictions":
        return predictions_figure(dataset, found, title, columns)
    if kind == "errors":
        wrong = sorted((p for p in found if p.wrong), key=lambda p: (-p.confidence, p.index))
        if table is not None:
            write_whole(table, lambda path: _write_errors(path, dataset, wrong))
            session.logger.info("Wrote %s", table)
        said = f"{title}: {len(wrong):,} of {len(found):,} wrong"
        said += f", the {number} most confident" if len(wrong) > number else ""
        return predictions_figure(dataset, wrong[:number], said, columns, with_files=True)
    return draw_confusion(confusion_of(found, classes), dataset.CLASSES, title)


def _opened(
    settings: Settings,
    shown: str | Path | nn.Module | Classifier,
    split: str,
    dataset: BaseDataset,
    session: Session,
    engine: str | None,
    threads: int | None,
) -> tuple[nn.Module, torch.device, str]:
    """Return the model, its device, and its name in titles."""
    if isinstance(shown, (str, Path)):
        model = open_model(settings, shown, split, dataset, session, engine, threads)
        return model, session.device, Path(shown).name
    if engine is not None or threads is not None:
        raise ConfigError("engine and threads need an exported model; this model is already loaded.")
    if not isinstance(shown, nn.Module):
        running = cast("ExportedModel", shown).engine
        exported = OnnxClassifier(running, settings.model.get("head") or {})
        return exported, session.device, Path(running.path).name
    device = next((tensor.device for tensor in shown.parameters()), session.device)
    return shown, device, "the model"


def _write_errors(path: Path, dataset: BaseDataset, wrong: Sequence[Prediction]) -> None:
    """Write a row per error, in the given order; confidence and probability are 0 to 1."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "true_class", "predicted_class", "confidence", "true_class_probability"])
        for p in wrong:
            names = [name_of(dataset.CLASSES, label) for label in (p.label, p.predicted)]
            writer.writerow([dataset.describe(p.index), *names, f"{p.confidence:.6f}", f"{p.probability:.6f}"])


def _to_tensorboard(figure: Any, kind: str, folder: Path) -> None:
    path = save(figure, folder / f"{kind}.png")
    write_pictures(folder / "tf_logs", {kind: pixels(path)})

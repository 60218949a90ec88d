"""`TensorboardLoggerHook`: log a run for TensorBoard.

    train/…, val/…, best/…, size/…                  scalars
    weight_sqnr_db/LAYER, input_clipped/LAYER, …    measures of each quantizer, as in the analysis report
    train_weight_sqnr_db/LAYER, …                   the same between two steps, if the run has a `QuantStatsHook`
    weight/LAYER/float, …/quantized, input/LAYER/…  histograms before and after the quantizer
    predictions/val                                 a few images with the model's predictions
    config                                          config as text
    HPARAMS                                         a row for each run

Layers and predictions are inspected after an epoch, on rank 0, with the weights that are validated, in eval mode and
float32, on the same few images each time. The hook does not change a run: it is bit-identical with and without it, and
goes on without it if its files cannot be written.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lbitcls.analysis.figures import rendered
from lbitcls.analysis.passes import layers_of
from lbitcls.analysis.snapshot import LayerSnapshot, take_snapshot
from lbitcls.analysis.tensors import GridReport, TensorReport
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.hooks.log import POSITION, QUANTIZERS, Writer
from lbitcls.quant.size import model_size
from lbitcls.registry import HOOKS
from lbitcls.tracking.board import Board
from lbitcls.tracking.hparams import COLUMNS, FIRST, config_values, hyperparameters, settings_of
from lbitcls.tracking.probe import probed_dataset, read_probe
from lbitcls.tracking.quant_stats import scalars
from lbitcls.tracking.run_pictures import predictions_figure, read_predictions
from lbitcls.utils.dist import is_main
from lbitcls.utils.errors import ConfigError, require_count, require_list, suggest
from lbitcls.utils.files import check_folder
from lbitcls.utils.logging import DETAIL, get_logger

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

LOOKS = 20  # maximum number of inspections in a run whose config sets no interval
MOST_LEVELS = 32  # maximum number of levels that each get their own bin in a histogram
TEETH = 4  # number of these bins per step
IN_A_ROW = 4  # images; TensorBoard shows a figure in a narrow card


def _dispensable(method: Callable[..., None]) -> Callable[..., None]:
    """Let a method of the hook end its board, with a warning, if the disk fails: checkpoints decide on the run."""

    @functools.wraps(method)
    def call(self: TensorboardLoggerHook, *given: Any) -> None:
        try:
            method(self, *given)
        except OSError as error:
            if self._board is not None:
                get_logger().warning(
                    "TensorBoard: %s cannot be written: %s; continuing without it.",
                    *(self._board.folder, error.strerror or error),
                )
            self._board = None

    return call


@HOOKS.register_module(name=["TensorboardLoggerHook", "TensorboardLoggerHookV2"])
class TensorboardLoggerHook(Writer):
    """Hook that logs a run for TensorBoard, to `tf_logs` in the work directory; steps are iterations.

    Args:
        log_dir: Folder for the event files; None: `tf_logs` in the work directory.
        interval: Epochs between two inspections of layers and predictions, at least 1; the last epoch is always
            followed by one. None: an interval that gives at most 20 inspections in the run.
        layers: Names of layers to inspect, or of modules that contain them, also with the wildcards `*`, `?` and `[…]`:
            `['backbone.layer1', '*.conv1']`. `[]`: none.
        histograms: Write histograms of these layers; scalars of their quantizers are written in any case.
        images: Number of images to use for the inspections, from the validation set, or else the training set. 0: no
            images, and so neither layer inputs nor predictions.
        predictions: Write these images with the model's predictions.
        hparams: Dotted config keys to add as columns to the table of hyperparameters.

    Raises:
        ConfigError: An option has a wrong type or value; at the start of the run: a name in `layers` or `hparams`
            matches nothing, a name in `hparams` is a section, or the folder cannot be written or is used by another
            such hook.
        DependencyError: TensorBoard is not installed.
    """

    def __init__(
        self,
        log_dir: str | None = None,
        interval: int | None = None,
        layers: Sequence[str] | str = ("*",),
        histograms: bool = True,
        images: int = 16,
        predictions: bool = True,
        hparams: Sequence[str] = (),
    ) -> None:
        if interval is not None:
            _check_count("interval", interval, 1)
        _check_count("images", images, 0)
        for name, flag in (("histograms", histograms), ("predictions", predictions)):
            if not isinstance(flag, bool):
                raise ConfigError(f"TensorboardLoggerHook: {name} must be True or False; got {flag!r}.")
        if log_dir is not None and not isinstance(log_dir, (str, Path)):
            raise ConfigError(f"TensorboardLoggerHook: log_dir must be a folder or None; got {log_dir!r}.")
        self.log_dir = log_dir
        self.interval = interval
        self.layers = [layers] if isinstance(layers, str) else require_list("TensorboardLoggerHook: layers", layers)
        self.histograms = histograms
        self.images = images
        self.predictions = predictions
        self.hparams = require_list("TensorboardLoggerHook: hparams", hparams)
        for option, names in (("layers", self.layers), ("hparams", self.hparams)):
            if not all(isinstance(name, str) for name in names):
                raise ConfigError(f"TensorboardLoggerHook: {option} must be names; got {list(names)!r}.")
        self._board: Board | None = None
        self._names: list[str] = []
        self._extra: dict[str, float | str] = {}
        self._begun = self._validated = self._looked = False
        self._batch: dict[str, torch.Tensor] | None = None

    def folder(self, runner: EpochRunner) -> Path:
        """Return the absolute path of the folder with the hook's files in this run."""
        return Path(self.log_dir or runner.work_dir / "tf_logs").expanduser().resolve()

    # Events that the runner calls.

    def before_run(self, runner: EpochRunner) -> None:
        self._names = chosen_layers(runner.module, self.layers)
        settings = settings_of(runner)
        self._extra = config_values(None if settings is None else settings.source, self.hparams)
        folder = self.folder(runner)
        if any(hook.folder(runner) == folder for hook in boards_of(runner) if hook is not self):
            raise ConfigError(
                f"TensorboardLoggerHook: two of these hooks write to {folder}, where each would hide the other's data; "
                "give one of them another log_dir, or remove it."
            )
        if is_main():
            check_folder(folder, "TensorboardLoggerHook: log_dir")
            self._board = Board(folder, runner.iter + 1 if runner.iter else 0)

    @_dispensable
    def write(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        if not self._begun:
            self._begin(runner)
        mode = record["mode"]
        if mode == QUANTIZERS:
            self._add(runner, scalars(record))
            return
        self._validated |= mode == "val"
        results = {name: value for name, value in record.items() if name not in POSITION}
        self._add(runner, {f"{mode}/{k}": v for k, v in results.items() if isinstance(v, (int, float))})

    @_dispensable
    def after_epoch(self, runner: EpochRunner) -> None:
        if self._board is None:
            return
        if self._validated:
            self._add(runner, _best(runner))
            self._validated = False
        interval = self.interval or -(-runner.max_epochs // LOOKS)
        if runner.epoch % interval == 0 or runner.epoch == runner.max_epochs:
            self._try_to_look(runner)

    @_dispensable
    def after_run(self, runner: EpochRunner) -> None:
        if self._board is None:
            return
        if self._begun:
            self._add(runner, {f"size/{name}": value for name, value in model_size(runner.module).items()})
            if runner.completed:
                self._board.end_hparams()
        self._board.close()

    # Entries after the run, on rank 0.

    @_dispensable
    def add_picture(self, runner: EpochRunner, name: str, image: np.ndarray) -> None:
        """Write one of the figures drawn at the end of the run, uint8 (H, W, 3)."""
        if self._board is not None:
            self._board.add_pictures({f"pictures/{name}": image}, runner.iter)

    @_dispensable
    def add_exported(self, runner: EpochRunner, integer: Mapping[str, Any]) -> None:
        """Write accuracy and size of the exported model, from the result of `export_run`."""
        if self._board is not None:
            found = {"integer/top-1": integer["top1"], "integer/size_kib": integer["size_kib"]}
            self._board.add_scalars(found, runner.iter)

    @_dispensable
    def close(self) -> None:
        """Write pending entries and close the file."""
        if self._board is not None:
            self._board.close()

    # Internals.

    def _begin(self, runner: EpochRunner) -> None:
        """Write the config and the row in the table, before the run's first record."""
        self._begun = True
        settings = settings_of(runner)
        if settings is None or self._board is None:
            return
        self._board.add_text("config", f"```python\n{settings.text}\n```", runner.iter)
        values, columns = {**hyperparameters(settings, runner), **self._extra}, {**COLUMNS, **self._extra}
        self._board.add_hparams(values, columns, {*FIRST, *self._extra}, _metrics(runner))

    def _add(self, runner: EpochRunner, values: Mapping[str, float]) -> None:
        if self._board is not None:
            self._board.add_scalars(values, runner.iter)

    def _try_to_look(self, runner: EpochRunner) -> None:
        try:
            self._look(runner)
        except OSError:
            raise
        except Exception as error:  # whatever it is, it must not end the run
            self._names, self.images = [], 0
            runner.logger.warning(
                "TensorBoard: No longer inspecting layers and predictions: %s: %s", type(error).__name__, error
            )

    def _look(self, runner: EpochRunner) -> None:
        if self._board is None or not (self._names or self.images):
            return
        began = time.monotonic()
        split, dataset = probed_dataset(runner)
        if self.images and self._batch is None:
            self._batch = read_probe(dataset, self.images)
        batch = self._batch if self.images else None
        images = None if batch is None else runner.to_device(batch)["img"]
        found, logits = take_snapshot(runner.eval_model, images, self._names)
        for name, layer in found.items():
            self._write_layer(self._board, name, layer, runner.iter)
        if self.predictions and batch is not None and logits is not None:
            said = read_predictions(logits, batch["gt_label"], batch["index"])
            name = "Validation" if split == "val" else "Training"
            figure = predictions_figure(dataset, said, f"{name} images after epoch {runner.epoch}", IN_A_ROW)
            self._board.add_pictures({f"predictions/{split}": rendered(figure)}, runner.iter)
        if not self._looked:
            self._looked = True
            runner.logger.info(
                "TensorBoard: Inspected %d layers and %d images in %.1f s.",
                *(len(found), 0 if batch is None else len(batch["img"]), time.monotonic() - began),
                extra=DETAIL,
            )

    def _write_layer(self, board: Board, name: str, layer: LayerSnapshot, step: int) -> None:
        for role, tensor in (("weight", layer.weight), ("input", layer.input)):
            if tensor is None:
                continue
            if tensor.grid is not None:
                figures = {f"{role}_{key}/{name}": value for key, value in _figures(tensor, tensor.grid).items()}
                board.add_scalars(figures, step)
            if self.histograms:
                for state, bins in _histograms(tensor).items():
                    board.add_histogram(f"{role}/{name}/{state}", *bins, step)


def _histograms(tensor: TensorReport) -> dict[str, tuple[float, float, Sequence[int]]]:
    """Return start, width and counts of the bins before and after quantization; one coarse grid gives a comb."""
    bins, grid = tensor.values, tensor.grid
    found: dict[str, tuple[float, float, Sequence[int]]] = {"float": (bins.start, bins.width, bins.before)}
    if grid is not None:
        comb = grid.levels_used_per_channel is None and grid.quant_max - grid.quant_min < MOST_LEVELS
        found["quantized"] = _comb(grid) if comb else (bins.start, bins.width, bins.after)
    return found


def _comb(grid: GridReport) -> tuple[float, float, Sequence[int]]:
    """Return one bin for each integer, with empty bins between."""
    counts = np.zeros((grid.quant_max - grid.quant_min) * TEETH + 1, dtype=np.int64)
    integers = np.asarray(grid.levels or range(grid.quant_min, grid.quant_max + 1))
    counts[(integers - grid.quant_min) * TEETH] = grid.counts
    lowest = (grid.quant_min - grid.zero_point_min) * grid.scale_median
    width = grid.scale_median / TEETH
    return lowest - width / 2, width, counts.tolist()


def _figures(tensor: TensorReport, grid: GridReport) -> dict[str, float]:
    """Return the measures of a quantizer, named as in the analysis report; with several scales the median."""
    per_channel = grid.levels_used_per_channel
    figures: dict[str, float | None] = {
        "scale": grid.scale_median,
        "clipped": grid.clipped,
        "levels_used": grid.levels_used if per_channel is None else per_channel,
        "sqnr_db": tensor.sqnr_db,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _check_count(name: str, value: Any, least: int) -> None:
    require_count(f"TensorboardLoggerHook: {name}", value, least)


def boards_of(runner: EpochRunner) -> list[TensorboardLoggerHook]:
    """Return the hooks of a run that write for TensorBoard."""
    return [hook for hook in runner.hooks if isinstance(hook, TensorboardLoggerHook)]


def chosen_layers(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the layers that `patterns` match, directly or by a module that contains them.

    Raises:
        ConfigError: A pattern matches no layer.
    """
    names = list(layers_of(model))
    chosen = set()
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not matching and pattern != "*":
            raise ConfigError(
                f"TensorboardLoggerHook: layers: '{pattern}' names no convolution or linear layer of the model"
                f"{suggest(pattern, names)}"
            )
        chosen.update(matching)
    return [name for name in names if name in chosen]


def _best(runner: EpochRunner) -> dict[str, float]:
    """Return the best result of the current phase, named like its weights file."""
    hook = runner.find(EvaluationHook)
    best = None if hook is None else hook.best.get(runner.phase)
    return {} if best is None else {Path(best["file"]).stem.replace("best_", "best/"): best["value"]}


def _metrics(runner: EpochRunner) -> list[str]:
    """Return the names of the scalars shown in the table."""
    names = ["train/loss", "size/quantized_kib", "integer/top-1", "integer/size_kib"]
    hook = runner.find(EvaluationHook)
    if hook is None:
        return names
    best = [] if hook.save_best is None else [f"best/{hook.save_best}", f"best/float_{hook.save_best}"]
    return [*best, *(f"val/top-{k}" for k in hook.topk), "val/loss", *names]

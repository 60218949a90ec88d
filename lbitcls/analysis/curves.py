"""Curves from `log.jsonl`: the recorded quantities of one or several runs, and the time per iteration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.analysis.figures import BLUE, GREEN, GREY, LINES, ORANGE, PURPLE, new_figure, style
from lbitcls.utils.errors import ConfigError, DataError, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG = "log.jsonl"
AXES = {"epoch": "epoch", "iter": "iteration", "images": "images seen"}
MODES = ("train", "val", "train_eval")
_DRAWN = {
    "train": (BLUE, "training, batches"),
    "train_eval": (GREEN, "training set, eval mode"),
    "val": (ORANGE, "validation"),
}
BEST = {"float": GREEN, "quantized": PURPLE}
_MARKERS_UP_TO = 60  # points
Series = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Run:
    """Records of a run.

    Attributes:
        name: Name in the legend.
        records: Records of `log.jsonl`, in order.
    """

    name: str
    records: Sequence[Mapping[str, Any]]

    @property
    def epoch_len(self) -> int:
        """Iterations per epoch (of the finished part if no epoch was finished)."""
        return max((r["iter"] for r in self.records if r["mode"] == "train"), default=1)

    def quantities(self) -> list[str]:
        """Return the quantities that can be drawn, sorted: those with numeric values."""
        skipped = ("epoch", "iter", "images")
        numbers = (key for r in self.records for key, v in r.items() if isinstance(v, (int, float)))
        return sorted({key for key in numbers if key not in skipped})

    def series(self, key: str, mode: str, axis: str = "epoch") -> Series:
        """Return the positions on `axis` (a key of `AXES`) and the values of `key` recorded in `mode`."""
        found = [r for r in self.records if r["mode"] == mode and isinstance(r.get(key), (int, float))]
        return np.array([self._place(r, axis) for r in found]), np.array([float(r[key]) for r in found])

    def _place(self, record: Mapping[str, Any], axis: str) -> float:
        if axis == "images":
            if "images" not in record:
                raise ConfigError(f"the log of '{self.name}' does not record the images seen; use epoch or iter.")
            return float(record["images"])
        whole = record["mode"] in ("val", "train_eval")
        done = record["epoch"] if whole else record["epoch"] - 1 + record["iter"] / self.epoch_len
        return float(done if axis == "epoch" else done * self.epoch_len)


def read_run(path: str | Path) -> Run:
    """Read the run whose log is `path`, a `log.jsonl` or the work directory that contains one.

    Raises:
        DataError: There is no log, or it is empty.
    """
    path = Path(path).expanduser()
    file = path / LOG if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is neither a work directory with a {LOG} nor such a file: {error}.") from error
    records = [record for line in lines if (record := _record(line)) is not None]
    if not records:
        raise DataError(f"{file} contains no records of a run.")
    return Run(file.resolve().parent.name, records)


def _record(line: str) -> dict[str, Any] | None:
    """Return the record in a line, or None if the line is truncated."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(record, dict) or not {"mode", "epoch", "iter"} <= record.keys():
        return None
    return {name: value for name, value in record.items() if value is not None}  # None was not finite


@dataclass(frozen=True)
class Timing:
    """Time per iteration of a run, in seconds.

    Attributes:
        mean: Mean over all iterations.
        fastest: Number of the epoch with the lowest mean, and that mean.
        slowest: Number of the epoch with the highest mean, and that mean.
        data: Mean time spent waiting for data.
        iterations: Number of iterations in the log.
    """

    mean: float
    fastest: tuple[int, float]
    slowest: tuple[int, float]
    data: float
    iterations: int


def measure_time(run: Run) -> Timing:
    """Return the time per iteration; a record counts for all iterations since the previous one.

    Raises:
        DataError: Nothing was trained.
    """
    epochs: dict[int, list[tuple[int, float, float]]] = {}
    last = (0, 0)
    for record in (r for r in run.records if r["mode"] == "train" and "time" in r):
        number = record["iter"] - (last[1] if record["epoch"] == last[0] else 0)
        last = record["epoch"], record["iter"]
        epochs.setdefault(record["epoch"], []).append((number, record["time"], record.get("data_time", 0.0)))
    if not epochs:
        raise DataError(f"the log of '{run.name}' has no training records.")
    weights, times, waits = np.array([row for rows in epochs.values() for row in rows]).T
    means = {epoch: _weighted(rows) for epoch, rows in epochs.items()}
    fastest, slowest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return Timing(
        mean=float(np.average(times, weights=weights)),
        fastest=(fastest, means[fastest]),
        slowest=(slowest, means[slowest]),
        data=float(np.average(waits, weights=weights)),
        iterations=int(weights.sum()),
    )


def _weighted(rows: Sequence[tuple[int, float, float]]) -> float:
    weights, times, _ = np.array(rows).T
    return float(np.average(times, weights=weights))


def draw_curves(runs: Sequence[Run], keys: Sequence[str] = ("loss", "top-1"), axis: str = "epoch") -> Figure:
    """Draw a panel per key with a line per run: dashed for training, solid for validation.

    Args:
        runs: Runs to compare.
        keys: Quantities; `val/top-1` or `train/loss` for those of one mode.
        axis: Key of `AXES`.

    Raises:
        ConfigError: An unknown axis, or a key that no run has.
    """
    if axis not in AXES:
        raise ConfigError(f"there is no axis '{axis}'{suggest(axis, AXES)} Known: {', '.join(AXES)}.")
    with style():
        columns = min(len(keys), 3)
        rows = -(-len(keys) // columns)
        figure = new_figure(max(4.6 * columns, 5.4), 3.2 * rows)
        panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for panel, key in zip(panels, keys):
            _draw_key(panel, runs, key, axis)
        for panel in panels[len(keys) :]:
            panel.set_axis_off()
    return figure


def _draw_key(panel: Axes, runs: Sequence[Run], key: str, axis: str) -> None:
    mode, _, name = key.rpartition("/")
    modes = (mode,) if mode in MODES else MODES
    name = name if mode in MODES else key
    drawn = 0
    for run, color in zip(runs, LINES * (1 + len(runs) // len(LINES))):
        for which in modes:
            places, values = run.series(name, which, axis)
            if len(values):
                label = which if len(runs) == 1 else f"{run.name}, {which}"
                _line(panel, places, values, which, color, label)
                drawn += 1
    if not drawn:
        known = sorted({k for run in runs for k in run.quantities()})
        raise ConfigError(f"no log has '{key}'{suggest(name, known)} Known: {', '.join(known)}.")
    _finish(panel, key, _unit(name), AXES[axis])


def _line(panel: Axes, places: np.ndarray, values: np.ndarray, mode: str, color: str, label: str) -> None:
    few = len(values) <= _MARKERS_UP_TO
    panel.plot(
        *(places, values),
        color=color,
        linestyle={"val": "-", "train_eval": "-."}.get(mode, (0, (4, 2))),
        alpha=1 if mode == "val" else 0.75,
        marker="o" if (few and mode != "train") or len(values) == 1 else None,
        markersize=3,
        label=label,
    )


def _unit(key: str) -> str:
    if key.startswith("top-") or key in ("precision", "recall", "f1_score"):
        return "percent"
    return {"time": "seconds per iteration", "data_time": "seconds per iteration", "memory": "MB"}.get(key, "")


def _finish(panel: Axes, title: str, unit: str, axis: str) -> None:
    panel.set_title(title, loc="left", fontweight="bold")
    panel.set_xlabel(axis)
    panel.set_ylabel(unit)
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6 if axis == "images seen" else 8, min_n_ticks=1))
    panel.xaxis.set_major_formatter(_count)
    if panel.get_legend_handles_labels()[0]:
        panel.legend()


def draw_results(run: Run, best: Mapping[str, Mapping[str, Any]] | None = None, quantized_from: int = 0) -> Figure:
    """Draw a run's loss and accuracy against the images seen, with the epochs along the top.

    The training loss is the logged loss of batches; the losses of validation, and of the training set in eval mode if
    it was measured, are at the ends of epochs. A log that does not count images is drawn against epochs.

    Args:
        run: Records of the run.
        best: Best results by phase: dicts with `key`, `value` and `epoch`.
        quantized_from: Number of epochs trained before the quantizers were enabled; 0: not shown.
    """
    scale = _images_per_epoch(run) or 1
    with style():
        figure = new_figure(10, 3.9)
        loss, accuracy = figure.subplots(1, 2)
        for panel, key in ((loss, "loss"), (accuracy, "top-1")):
            for mode, (color, label) in _DRAWN.items():
                places, values = run.series(key, mode)
                if len(values):
                    _line(panel, scale * places, values, mode, color, label)
            if quantized_from:
                panel.axvline(scale * quantized_from, color=GREY, linestyle=":", linewidth=1.2, label="quantizers on")
            for phase, entry in (best or {}).items():
                if entry["key"] == key:
                    _mark_best(panel, phase, entry, scale)
            title, axis = {"loss": "loss", "top-1": "top-1 accuracy"}[key], "epoch" if scale == 1 else "images seen"
            _finish(panel, title, _unit(key), axis)
            if scale != 1:
                _epochs_axis(panel, scale)
        figure.suptitle(run.name, fontsize=11, x=0.01, ha="left")
    return figure


def _mark_best(panel: Axes, phase: str, entry: Mapping[str, Any], scale: float) -> None:
    unit = "" if entry["key"] == "loss" else " %"
    label = f"best, {phase}: {entry['value']:.4g}{unit} (epoch {entry['epoch']})"
    panel.plot(
        [scale * entry["epoch"]], [entry["value"]], "*", color=BEST.get(phase, ORANGE), markersize=12, label=label
    )


def _images_per_epoch(run: Run) -> float | None:
    """Return the training images per epoch; None if a record does not count them, or nothing was trained yet."""
    counted = [(r["images"], run._place(r, "epoch")) for r in run.records if "images" in r]
    if len(counted) < len(run.records) or not counted[-1][0]:
        return None
    return counted[-1][0] / counted[-1][1]


def _epochs_axis(panel: Axes, scale: float) -> None:
    """Add a second axis along the top, with `scale` images per epoch."""
    functions: Any = (lambda images: images / scale, lambda epoch: epoch * scale)  # of arrays
    top = panel.secondary_xaxis("top", functions=functions)
    top.set_xlabel("epoch", fontsize=8)
    top.tick_params(labelsize=7.5)
    top.xaxis.set_major_formatter(_count)


def _count(value: float, _: object = None) -> str:
    return f"{value:,.0f}"

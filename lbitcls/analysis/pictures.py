"""Labeled images: grids of a training batch and of predictions with errors marked, and a single image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lbitcls.analysis.figures import BLUE, DPI, GREEN, GREY, INK, RED, can_draw, new_figure, shorten, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE, _GAP, _LINE = 1.6, 0.08, 0.155  # inches: side of an image, gap between two, height of a line of text
_CAPTION = 20  # characters that fit below an image
_SMALLEST, _LARGEST, _THINNEST = 3.6, 8.0, 0.05  # inches: longer side of a labeled image; its shorter side
_MARGIN, _ENTRY, _LETTERS = 0.1, 0.3, 10  # inches: around it, per class below it; letters per inch


@dataclass(frozen=True)
class Prediction:
    """Prediction of a model for one image.

    Attributes:
        index: Index of the image in its data set.
        label: True class.
        predicted: Class with the highest score.
        confidence: Probability of the predicted class, 0 to 1.
        probability: Probability of the true class, 0 to 1.
    """

    index: int
    label: int
    predicted: int
    confidence: float
    probability: float

    @property
    def wrong(self) -> bool:
        """True if the predicted class is not the true one."""
        return self.label != self.predicted


def class_name(names: Sequence[str] | None, label: int) -> str:
    """Return a class's name, or `class N` if names are unknown or no font has the name's characters."""
    if names is None or label >= len(names):
        return str(label)
    return str(names[label]) if can_draw(str(names[label])) else f"class {label}"


def draw_batch(
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    names: Sequence[str] | None = None,
    title: str = "",
    columns: int | None = None,
) -> Figure:
    """Draw a grid of images with their labels below.

    Args:
        images: Images, each (H, W) or (H, W, 3), float in 0-1.
        labels: Class of each image.
        names: Class names in label order; None: labels are shown.
        title: Title above the grid.
        columns: Images per row; None: chosen by their number.
    """
    with style():
        figure, cells = _grid(len(images), 1, title, columns)
        for cell, image, label in zip(cells, images, labels, strict=True):
            _show(cell, image)
            _caption(cell, [(shorten(class_name(names, label), _CAPTION), INK)])
    return figure


def draw_predictions(
    images: Sequence[np.ndarray],
    predictions: Sequence[Prediction],
    names: Sequence[str] | None = None,
    title: str = "",
    columns: int | None = None,
    files: Sequence[str] | None = None,
) -> Figure:
    """Draw a grid of images with predicted class and confidence; errors get a red frame and the true class.

    Args:
        images: Images, each (H, W) or (H, W, 3), float in 0-1.
        predictions: Prediction for each image.
        names: Class names in label order; None: labels are shown.
        title: Title above the grid.
        columns: Images per row; None: chosen by their number.
        files: File name of each image, for the last line below it; None: no such line.
    """
    with style():
        figure, cells = _grid(len(images), 2 if files is None else 3, title, columns)
        for place, (cell, image, prediction) in enumerate(zip(cells, images, predictions, strict=True)):
            _show(cell, image, RED if prediction.wrong else None)
            file = [] if files is None else [(_shorten_file(files[place]), GREY)]
            _caption(cell, [*_said(prediction, names), *file])
    return figure


def draw_result(image: np.ndarray, said: Sequence[tuple[str, float]]) -> Figure:
    """Draw an image with the predicted classes below, each with its score as a number and as a bar.

    Args:
        image: uint8 (H, W, 3).
        said: Name and score (0-1) of each class, best first.
    """
    height, width = image.shape[:2]
    longest = min(max(max(height, width) / DPI, _SMALLEST), _LARGEST)
    high, wide = (max(longest * side / max(height, width), _THINNEST) for side in (height, width))
    enlarged = longest * DPI > 4 * max(height, width)
    across, foot = max(wide, _SMALLEST) + 2 * _MARGIN, _ENTRY * len(said)
    down = high + foot + 2 * _MARGIN
    with style():
        figure = new_figure(across, down, arranged=False)
        left, bottom = (across - wide) / 2, down - high - _MARGIN
        cell = figure.add_axes((left / across, bottom / down, wide / across, high / down))
        cell.imshow(image, interpolation="nearest" if enlarged else "antialiased", aspect="auto")
        cell.axis("off")
        bars = figure.add_axes((_MARGIN / across, _MARGIN / 2 / down, 1 - 2 * _MARGIN / across, foot / down))
        bars.set(xlim=(0, 1), ylim=(len(said), 0))
        bars.axis("off")
        for place, (name, score) in enumerate(said):
            _entry(bars, place, name, score, int((across - 1) * _LETTERS))
    return figure


def _entry(bars: Axes, place: int, name: str, score: float, letters: int) -> None:
    """Draw a class's name, score and bar in row `place`."""
    first = place == 0
    look: dict[str, Any] = dict(
        va="bottom", fontsize=10.5, color=INK if first else GREY, fontweight="bold" if first else "normal"
    )
    bars.text(0, place + 0.68, shorten(name, letters), **look)
    bars.text(1, place + 0.68, _percent(score), ha="right", **look)
    for length, color in ((1.0, "#e5e7eb"), (score, BLUE if first else GREY)):
        bars.plot((0, length), (place + 0.82,) * 2, color=color, linewidth=3, solid_capstyle="butt")


def _said(prediction: Prediction, names: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return the lines below an image, with their colors."""
    said = f"{shorten(class_name(names, prediction.predicted), _CAPTION - 6)}, {_percent(prediction.confidence)}"
    if not prediction.wrong:
        return [(f"✓ {said}", GREEN)]
    true = f"{shorten(class_name(names, prediction.label), _CAPTION - 10)}, {_percent(prediction.probability)}"
    return [(f"✗ {said}", RED), (f"true: {true}", INK)]


def _shorten_file(name: str) -> str:
    """Return a file name that fits below an image: its end, which numbers the files of a folder."""
    return name if len(name) <= _CAPTION else f"…{name[1 - _CAPTION :]}"


def _percent(probability: float) -> str:
    if 0 < probability < 0.005:
        return "<1 %"
    return f"{100 * probability:.0f} %"


def _grid(number: int, lines: int, title: str, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """Create a figure with a cell for each of `number` images, with `lines` lines of text below each.

    The cells are placed by hand: a layout engine would take seconds for a known layout.
    """
    columns = columns or (8 if number > 12 else max(3, number if number <= 4 else -(-number // 2)))
    rows = max(1, -(-number // columns))
    step, head = _SIDE + _LINE * lines + 0.12, 0.36 if title else 0.08
    width, height = columns * (_SIDE + _GAP) + _GAP, head + rows * step
    figure = new_figure(width, height, arranged=False)
    if title:
        figure.text(_GAP / width, 1 - 0.1 / height, title, fontsize=11, fontweight="bold", va="top")
    places = [(_GAP + column * (_SIDE + _GAP), head + row * step) for row in range(rows) for column in range(columns)]
    boxes = [(x / width, 1 - (y + _SIDE) / height, _SIDE / width, _SIDE / height) for x, y in places[:number]]
    return figure, [figure.add_axes(box) for box in boxes]


def _show(cell: Axes, image: np.ndarray, frame: str | None = None) -> None:
    cell.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    cell.set_xticks([])
    cell.set_yticks([])
    cell.grid(False)
    cell.set_anchor("S")
    for spine in cell.spines.values():
        spine.set_visible(frame is not None)
        spine.set(color=frame or GREY, linewidth=3)


def _caption(cell: Axes, lines: Sequence[tuple[str, str]]) -> None:
    """Draw lines of text, with their colors, below an image."""
    for number, (text, color) in enumerate(lines):
        offset = (0, -5 - 72 * _LINE * number)
        cell.annotate(
            *(text, (0.5, 0)),
            xycoords="axes fraction",
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8.5,
            color=color,
        )

"""Confusion matrix as a figure that is readable for 2 classes and for 1,000."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lbitcls.analysis.figures import GREY, INK, new_figure, shorten, style
from lbitcls.analysis.pictures import class_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST = 40  # classes up to which names and counts are readable
_WITH_COUNTS = 25


def worst_classes(confusion: np.ndarray, number: int) -> list[int]:
    """Return the classes most confused with each other, at most `number` of them, in label order.

    Pairs of classes are added in the order of their confusion counts.

    Args:
        confusion: (K, K) counts, rows: true class.
        number: Number of classes, at least 2.
    """
    mistakes = confusion + confusion.T
    rows, columns = np.triu_indices(len(mistakes), k=1)
    counts = mistakes[rows, columns]
    chosen: list[int] = []
    for pair in np.argsort(-counts, kind="stable"):
        new = [int(c) for c in (rows[pair], columns[pair]) if c not in chosen]
        if not counts[pair] or len(chosen) + len(new) > number:
            break
        chosen += new
    return sorted(chosen) or list(range(min(number, len(mistakes))))


def draw_confusion(confusion: np.ndarray, names: Sequence[str] | None = None, title: str = "") -> Figure:
    """Draw the confusion matrix, each row in percent of its true class, with counts if there is room for them.

    Above 40 classes, the figure shows the classes most confused with each other.

    Args:
        confusion: (K, K) counts, rows: true class.
        names: Class names in label order; None: labels are shown.
        title: Title above the figure.
    """
    confusion = np.asarray(confusion)
    all_classes = len(confusion)
    shown = list(range(all_classes)) if all_classes <= LARGEST else worst_classes(confusion, LARGEST)
    hits, total = int(np.trace(confusion)), int(confusion.sum())
    said = f"{hits:,} of {total:,} correct ({100 * hits / max(total, 1):.1f} %)"
    if len(shown) < all_classes:
        said += f"; the {len(shown)} most confused of {all_classes} classes"
    with style():
        cell = 1.2 if len(shown) <= 4 else 0.55 if len(shown) <= 12 else 0.29  # inches
        side = 2.4 + len(shown) * cell
        figure = new_figure(side + 0.9, side)
        figure.suptitle(f"{title}\n{said}" if title else said, fontsize=10, x=0.02, ha="left")
        axes = figure.subplots()
        _draw_cells(axes, confusion, shown)
        labels = [shorten(class_name(names, c), 18) for c in shown]
        _name_axes(axes, labels, upright=max(map(len, labels)) > 11 * cell)
        bar = figure.colorbar(axes.images[0], ax=axes, fraction=0.04, pad=0.02, shrink=0.6, aspect=30)
        bar.outline.set_visible(False)
        bar.set_label("percent of the true class")
    return figure


def _draw_cells(axes: Axes, confusion: np.ndarray, shown: list[int]) -> None:
    """Color cells by the fraction of the true class's images; write counts if they fit."""
    totals = confusion.sum(1)[shown]
    block = confusion[np.ix_(shown, shown)]
    share = 100 * block / np.maximum(totals, 1)[:, None]
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axes.grid(False)
    size = 9 if len(shown) <= 12 else 7 if len(shown) <= _WITH_COUNTS else 5.5
    for row, column in zip(*np.nonzero(block), strict=True):
        right = row == column
        color = "white" if share[row, column] > 55 else INK if right else "#b91c1c"
        weight = "bold" if len(shown) <= _WITH_COUNTS and not right else "normal"
        axes.text(column, row, str(block[row, column]), ha="center", va="center", fontsize=size, color=color).set(
            fontweight=weight
        )


def _name_axes(axes: Axes, labels: list[str], upright: bool) -> None:
    places = np.arange(len(labels))
    size = 9 if len(labels) <= 12 else 7.5
    axes.set_xticks(places, labels, rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(places, labels, fontsize=size)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_xlabel("predicted", color=GREY)
    axes.set_ylabel("true", color=GREY)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(places[:-1] + 0.5, minor=True)
    axes.set_yticks(places[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color="#eceef1", linewidth=0.6, visible=True)
    axes.tick_params(which="minor", length=0)

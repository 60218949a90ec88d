"""Results of a test by class, with the classes' names: precision, recall, F1, and the confusion table."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import torch

from lbitcls.utils.dist import broadcast_object, gather_objects
from lbitcls.utils.logging import print_table

_WHOLE = 40  # classes up to which the table shows all of them
_LOWEST = 20  # classes that it shows otherwise
_CONFUSION = 20  # classes up to which the confusion matrix is printed


def name_of(names: Sequence[str] | None, label: int) -> str:
    """Return a class's name; its number if the name is unknown."""
    return str(label) if names is None or label >= len(names) else str(names[label])


class ClassCounts:
    """Counts of this rank's images by class: with that label, with that prediction, and with both."""

    def __init__(self) -> None:
        self._counts: torch.Tensor | None = None  # (3, K), K known from the first batch

    def add(self, labels: torch.Tensor, logits: torch.Tensor) -> None:
        """Add a batch: labels (N,) and logits (N, K)."""
        labels, best = labels.cpu(), logits.argmax(1).cpu()
        of_both = (labels, best, labels[labels == best])
        counts = torch.stack([torch.bincount(values, minlength=logits.shape[1]) for values in of_both])
        self._counts = counts if self._counts is None else self._counts + counts

    def results(self, names: Sequence[str] | None) -> dict[str, Any]:
        """Return `correct`, `total` and `classes`, the same on all ranks.

        Args:
            names: Class names in label order; None: the numbers are the names.

        Returns:
            `correct` and `total` count images. `classes` lists a dict per class in label order: its `class` name, the
            number of its `images`, and `precision`, `recall` and `f1_score` in percent, which are None for a class
            that neither labels nor predictions contain.
        """
        parts = [part for part in gather_objects(self._counts) if part is not None]
        true, predicted, hits = broadcast_object(torch.stack(parts).sum(0).tolist() if parts else [[], [], []])
        rows = enumerate(zip(true, predicted, hits, strict=True))
        classes = [{"class": name_of(names, label), **_measures(*counts)} for label, counts in rows]
        return {"correct": sum(hits), "total": sum(true), "classes": classes}


def _measures(true: int, predicted: int, hits: int) -> dict[str, Any]:
    occurs = true + predicted > 0
    values = {
        "precision": 100 * hits / max(predicted, 1),
        "recall": 100 * hits / max(true, 1),
        "f1_score": 200 * hits / max(true + predicted, 1),
    }
    return {"images": true, **{name: value if occurs else None for name, value in values.items()}}


def print_classes(classes: Sequence[dict[str, Any]]) -> None:
    """Print precision, recall and F1 of each class; of many classes those with the lowest F1."""
    shown, title = list(classes), "Classes, in percent"
    if len(shown) > _WHOLE:
        occurring = [row for row in shown if row["f1_score"] is not None]
        shown = sorted(occurring, key=lambda row: row["f1_score"])[:_LOWEST]
        title = f"Classes, in percent: the {len(shown)} of {len(classes):,} with the lowest F1 (--out FILE has all)"
    measures = ("precision", "recall", "f1_score")
    rows = [(row["class"], f"{row['images']:,}", *(_percent(row[name]) for name in measures)) for row in shown]
    print_table(title, ("class", "images", "precision", "recall", "F1"), rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def print_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str] | None) -> None:
    """Print a confusion matrix of at most 20 classes, rows by true class.

    Its columns have the classes' names if they fit into the terminal, or else numbers, which the rows then have too.
    """
    if len(confusion) > _CONFUSION:
        return
    from rich.cells import cell_len

    columns = rows = [name_of(names, label) for label in range(len(confusion))]
    corner = "true \\ predicted"
    first = max(cell_len(text) for text in (corner, *rows))
    widest = [max(cell_len(name), *(len(str(row[label])) for row in confusion)) for label, name in enumerate(columns)]
    if sum(widest) + first + 3 * len(columns) + 4 > shutil.get_terminal_size().columns:
        columns = [str(label) for label in range(len(confusion))]
        rows = [number if number == name else f"{number} {name}" for number, name in zip(columns, rows, strict=True)]
    print_table("Confusion", (corner, *columns), [(rows[i], *row) for i, row in enumerate(confusion)])

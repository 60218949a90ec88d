"""Check that a data set's labels match the model's classes: range of labels, and class names."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from lbitcls.protocols import Dataset
from lbitcls.utils.errors import ConfigError, DataError

_SHOWN = 3  # names that a message lists; the rest are counted


def check_labels(model: nn.Module, dataset: Dataset, split: str) -> None:
    """Raise `ConfigError` if `dataset` (the config's `data.<split>`) has labels outside the model's classes."""
    known = getattr(model, "num_classes", None)
    lowest, highest = int(min(dataset.labels, default=0)), int(max(dataset.labels, default=0))
    if isinstance(known, int) and (highest >= known or lowest < 0):
        raise ConfigError(
            f"the model has {known} classes (model.head.num_classes), so labels are 0 to {known - 1}; but data.{split} "
            f"has labels {f'down to {lowest}' if lowest < 0 else f'up to {highest}'}."
        )


def check_names(
    trained: Sequence[str] | None, source: str, dataset: Dataset, split: str, logger: logging.Logger
) -> None:
    """Raise `DataError` if a data set numbers the classes differently from the data that the model was trained on.

    Names that have nothing in common count as other names for the same classes ('n01440764' and 'tench', '3' and
    'three'): they are only logged, unless the number of classes differs. If it differs, the 1,000 ImageNet names, which
    a data set uses if its config sets none, still count as other names, with a warning.

    Args:
        trained: Class names in training, in label order; None: unknown.
        source: Origin of these names, for the message.
        dataset: Data set whose `CLASSES` are compared, if it has them.
        split: Part of `data` that the data set belongs to.
        logger: Logger for a note about other names.

    Raises:
        DataError: Names are missing, new, or in another order.
    """
    if trained is None or dataset.CLASSES is None or tuple(trained) == tuple(dataset.CLASSES):
        return
    before, now = tuple(trained), tuple(dataset.CLASSES)
    same_number = len(before) == len(now)
    if not set(before) & set(now) and (same_number or _imagenet(before) or _imagenet(now)):
        logger.log(
            logging.INFO if same_number else logging.WARNING,
            "data.%s names its %d classes otherwise than %s its %d; label i is taken to be the same class in both.",
            *(split, len(now), source, len(before)),
        )
        return
    raise DataError(
        f"data.{split} does not number the classes as {source}, so its labels would mean others: "
        f"{_difference(before, now)} Give both the same classes, in one order (`classes` of the data set)."
    )


def _imagenet(names: tuple[str, ...]) -> bool:
    if len(names) != 1000:
        return False
    from lbitcls.datasets.names import imagenet_classes

    return names == imagenet_classes()


def _difference(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    missing, new = [n for n in before if n not in set(now)], [n for n in now if n not in set(before)]
    parts = [f"it has {len(now)} classes for {len(before)}"] if len(now) != len(before) else []
    parts += [f"it lacks {_listed(missing)}"] if missing else []
    parts += [f"it adds {_listed(new)}"] if new else []
    if not parts:
        label = next(i for i, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
        parts = [f"label {label} is '{now[label]}' for '{before[label]}'"]
    return ", ".join(parts) + "."


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

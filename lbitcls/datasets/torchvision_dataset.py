"""Any classification data set of torchvision, by name: `dict(type='TorchvisionDataset', name='Flowers102', …)`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torchvision.datasets

from lbitcls.datasets.base import BaseDataset, logger
from lbitcls.datasets.pipelines.decode import as_image
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.datasets.root import Roots, download_root, search_roots
from lbitcls.registry import DATASETS
from lbitcls.utils.cache import exclusive
from lbitcls.utils.errors import ConfigError, DataError, DependencyError, reason_of, require_dict, suggest

_LABELS = ("targets", "labels", "_labels", "y")
"""Attributes in which torchvision's data sets keep the label of each image."""
_FILES = ("samples", "_samples", "imgs")
"""Attributes with pairs of an image and its label."""


@DATASETS.register_module()
class TorchvisionDataset(BaseDataset):
    """Data set of `torchvision.datasets` whose targets are classes. Its images are read one by one, in its own order.

    Labels are read without decoding images where the data set keeps them; else each image is read once at the start.

    Args:
        name: Name of the class, such as `'Flowers102'`.
        pipeline: Steps, as in a config.
        options: Its own arguments (`dict(split='train')`, `dict(train=False)`), except `root` and `download`.
        data_prefix: Folder to give it as `root`, below one of the data roots; None: the first root in which it finds
            its files.
        download: Download the files if they are not found: to `data_prefix`, or to the first root.
        on_error: See `BaseDataset`.
        data_root: See `build_dataset`.
    """

    def __init__(
        self,
        name: str,
        pipeline: Sequence[Any] = (),
        options: dict[str, Any] | None = None,
        data_prefix: str | None = None,
        download: bool = False,
        on_error: str = "raise",
        data_root: Roots = None,
    ) -> None:
        kind, given = _find(name), require_dict("TorchvisionDataset: options", options)
        accepted = _accepted(kind)
        for key in given:
            if key not in accepted:
                raise ConfigError(f"TorchvisionDataset: {name} does not accept '{key}'{suggest(key, accepted)}")
        self.name = name
        self._data = _open(kind, given, data_prefix, download, data_root)
        classes = getattr(self._data, "classes", None)
        labels = _labels(self._data, name)
        names = [str(one) for one in classes] if isinstance(classes, (list, tuple)) else []
        super().__init__(labels, pipeline, names if len(names) > max(labels, default=0) else None, on_error)

    def describe(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def info(self, index: int) -> dict[str, Any]:
        try:
            image = as_image(self._data[index][0])
        except Exception as error:  # whatever torchvision raises for a missing or damaged file
            raise UnreadableImage(f"{self.describe(index)}: cannot read this image: {reason_of(error)}") from error
        return {"img": image, "filename": self.describe(index)}


def _find(name: str) -> Any:
    """Return torchvision's class `name`; raise `ConfigError` if there is none."""
    known = [key for key in torchvision.datasets.__all__ if _is_dataset(getattr(torchvision.datasets, key, None))]
    if name not in known:
        raise ConfigError(f"TorchvisionDataset: torchvision has no data set '{name}'{suggest(str(name), known)}")
    return getattr(torchvision.datasets, name)


def _is_dataset(found: Any) -> bool:
    base = torchvision.datasets.VisionDataset
    return isinstance(found, type) and issubclass(found, base) and found is not base


def _accepted(kind: Any) -> list[str]:
    ours = ("root", "download", "transform", "target_transform", "transforms", "loader")
    return [key for key in inspect.signature(kind).parameters if key not in ours]


def _open(kind: Any, options: Mapping[str, Any], prefix: str | None, download: bool, data_root: Roots) -> Any:
    """Return torchvision's data set, from the first root in which it finds its files."""
    parameters, roots = inspect.signature(kind).parameters, search_roots(data_root)
    if "root" not in parameters:
        return _made(kind, options)
    places = list(dict.fromkeys(root / (prefix or ".") for root in roots))
    told = []
    for place in places:
        try:
            return _made(kind, {**options, "root": str(place)})
        except DataError as error:
            told.append(f"{place.absolute()}: {error}")
    if not (download and "download" in parameters):
        hint = "download=True downloads it. " if "download" in parameters else ""
        raise DataError(f"TorchvisionDataset: {kind.__name__} finds no files. {hint}Searched: {'; '.join(told)}")
    place = download_root(roots) / (prefix or ".")
    with exclusive(place / kind.__name__) if place.is_dir() else nullcontext():
        return _made(kind, {**options, "root": str(place), "download": True})


def _made(kind: Any, options: Mapping[str, Any]) -> Any:
    try:
        return kind(**options)
    except (RuntimeError, OSError) as error:  # what it raises for files that are missing or damaged
        raise DataError(reason_of(error)) from error
    except (ValueError, TypeError) as error:  # for its arguments
        raise ConfigError(f"TorchvisionDataset: {kind.__name__}: {reason_of(error)}") from error
    except ImportError as error:
        raise DependencyError(
            f"TorchvisionDataset: {kind.__name__} needs a package that cannot be imported ({reason_of(error)}); "
            "install it with pip."
        ) from error
    except Exception as error:  # of damaged files, of many kinds
        raise DataError(reason_of(error)) from error


def _labels(data: Any, name: str) -> list[int]:
    """Return the label of each image.

    Raises:
        ConfigError: The targets are not classes.
    """
    found = next((values for values in _kept_labels(data) if len(values) == len(data)), None)
    if found is None:
        logger.info("TorchvisionDataset: %s does not list its labels; reading all %d images once.", name, len(data))
        found = [_read_label(data, index, name) for index in range(len(data))]
    labels = [int(label) if isinstance(label, (int, np.integer)) else _number(label) for label in found]
    if any(label is None or label < 0 for label in labels):
        raise ConfigError(
            f"TorchvisionDataset: the targets of {name} are not classes, so it cannot train a classifier."
        )
    return [label for label in labels if label is not None]


def _read_label(data: Any, index: int, name: str) -> Any:
    try:
        return data[index][1]
    except Exception as error:  # whatever torchvision raises for a missing or damaged file
        raise DataError(
            f"TorchvisionDataset: {name}[{index}] cannot be read for its label: {reason_of(error)}"
        ) from error


def _kept_labels(data: Any) -> list[Sequence[Any]]:
    kept: list[Any] = [getattr(data, name, None) for name in _LABELS]
    pairs = [getattr(data, name, None) for name in _FILES]
    kept += [[pair[1] for pair in found] for found in pairs if found and isinstance(found[0], tuple)]
    return [values for values in kept if isinstance(values, (list, tuple)) or hasattr(values, "__array__")]


def _number(label: Any) -> int | None:
    """Return a tensor or array of one integer as an integer; None for anything else."""
    value = label.item() if hasattr(label, "item") and getattr(label, "size", None) is not None else None
    return value if isinstance(value, int) else None

"""Builder of data sets from their config sections."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from lbitcls.datasets.base import BaseDataset
from lbitcls.datasets.pipelines.compose import Compose
from lbitcls.datasets.root import Roots
from lbitcls.datasets.subset import select
from lbitcls.registry import DATASETS
from lbitcls.utils.arguments import check_names, check_values
from lbitcls.utils.errors import ConfigError, shown

SELECTORS = ("indices", "exclude_indices")
"""Keys of a data set's section that select some of its samples."""


def build_dataset(cfg: dict[str, Any], data_root: Roots = None) -> BaseDataset:
    """Build a data set.

    Args:
        cfg: `dict(type='ImageNet', data_prefix=…, ann_file=…, pipeline=[…])`. Its `data_root` is searched first;
            `indices`, a list or range of positions, selects samples; `exclude_indices` leaves samples out.
        data_root: One or several folders to search next for a relative path (the config's top-level `data_root`,
            then the `--data-root` flag); None is ignored. See `lbitcls.datasets.root`.

    Returns:
        The data set: see `lbitcls.datasets.base.BaseDataset`.

    Raises:
        ConfigError: Unknown type or key.
        DataError: The data is missing or corrupt.

    Example:
        >>> len(build_dataset(dict(type="Digits", split="test", pipeline=[])))
        360
    """
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise ConfigError(f"a data set must be dict(type='…', pipeline=[…], …); got {cfg!r}.")
    arguments = with_roots(cfg, data_root)
    selection = {key: arguments.pop(key) for key in SELECTORS if key not in _keys(cfg) and key in arguments}
    return select(DATASETS.build(arguments), **selection)


def check_dataset(cfg: Any) -> None:
    """Check a data set's section without looking for its data: the type, its keys and values, and the pipeline.

    Raises:
        ConfigError: `build_dataset` would raise it for the same section.
    """
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise ConfigError(f"a data set must be dict(type='…', pipeline=[…], …); got {shown(cfg)}.")
    kind = DATASETS.resolve(cfg["type"])
    given = with_roots(cfg, None)
    own = {key: v for key, v in given.items() if key != "type" and (key not in SELECTORS or key in _keys(cfg))}
    check_names(kind, own)
    check_values(kind.__name__, kind, own)
    if isinstance(kind, type) and issubclass(kind, BaseDataset):
        Compose(given.get("pipeline", ()))


def with_roots(cfg: dict[str, Any], data_root: Roots) -> dict[str, Any]:
    """Return a data set's section with all folders to search as its `data_root`: its own first, then `data_root`.

    A class that has no `data_root` parameter because it knows where its data is gets none.
    """
    arguments = dict(cfg)
    roots = [*_as_list(arguments.pop("data_root", None)), *_as_list(data_root)]
    return {**arguments, "data_root": roots} if "data_root" in _keys(arguments) else arguments


def _keys(cfg: dict[str, Any]) -> Mapping[str, Any]:
    return inspect.signature(DATASETS.resolve(cfg["type"])).parameters


def _as_list(roots: Roots) -> list[Any]:
    given = [roots] if isinstance(roots, (str, os.PathLike)) or roots is None else roots
    if not isinstance(given, (list, tuple)) or not all(isinstance(r, (str, os.PathLike, type(None))) for r in given):
        raise ConfigError(f"data_root must be a folder, '…', or a list of them; got {shown(roots)}.")
    return list(given)

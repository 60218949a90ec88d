"""A data set from its section of a config."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from lbitcls.datasets.base import BaseDataset
from lbitcls.datasets.pipelines.compose import Compose
from lbitcls.datasets.root import Roots
from lbitcls.datasets.subset import Subset
from lbitcls.registry import DATASETS
from lbitcls.utils.arguments import check_names, check_values
from lbitcls.utils.errors import ConfigError, shown


def build_dataset(cfg: dict[str, Any], data_root: Roots = None) -> Any:
    """Build a data set.

    Args:
        cfg: `dict(type='ImageNet', data_prefix=…, ann_file=…, pipeline=[…])`; its `data_root` is searched
            first, and `indices`, a list or range of positions, leaves the other samples out.
        data_root: one folder or several, below which a relative path is looked for next (a `data_root` at the
            top of the config, then the `--data-root` flag); None is left out. See `lbitcls.datasets.root`.

    Returns:
        The data set: see `lbitcls.datasets.base.BaseDataset`.

    Raises:
        ConfigError: an unknown type or key.
        DataError: the data is missing or corrupt.

    Example:
        >>> len(build_dataset(dict(type="Digits", split="test", pipeline=[])))
        360
    """
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise ConfigError(f"a data set is given as dict(type='…', pipeline=[…], …); got {cfg!r}.")
    arguments = with_roots(cfg, data_root)
    indices = None if "indices" in _keys(arguments) else arguments.pop("indices", None)
    dataset = DATASETS.build(arguments)
    return dataset if indices is None else Subset(dataset, indices)


def check_dataset(cfg: Any) -> None:
    """Check a data set's section without looking for its data: the type, its keys and their values, the pipeline.

    Raises:
        ConfigError: as `build_dataset` would of the same section.
    """
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise ConfigError(f"a data set is given as dict(type='…', pipeline=[…], …); got {shown(cfg)}.")
    kind = DATASETS.resolve(cfg["type"])
    given = with_roots(cfg, None)
    own = {key: v for key, v in given.items() if key != "type" and (key != "indices" or key in _keys(cfg))}
    check_names(kind, own)
    check_values(kind.__name__, kind, own)
    if isinstance(kind, type) and issubclass(kind, BaseDataset):
        Compose(given.get("pipeline", ()))


def with_roots(cfg: dict[str, Any], data_root: Roots) -> dict[str, Any]:
    """A data set's section whose `data_root` is every folder to search: its own, then `data_root`.

    A class that knows where its data lies without being told gets none.
    """
    arguments = dict(cfg)
    roots = [*_as_list(arguments.pop("data_root", None)), *_as_list(data_root)]
    return {**arguments, "data_root": roots} if "data_root" in _keys(arguments) else arguments


def _keys(cfg: dict[str, Any]) -> Mapping[str, Any]:
    return inspect.signature(DATASETS.resolve(cfg["type"])).parameters


def _as_list(roots: Roots) -> list[Any]:
    given = [roots] if isinstance(roots, (str, os.PathLike)) or roots is None else roots
    if not isinstance(given, (list, tuple)) or not all(isinstance(r, (str, os.PathLike, type(None))) for r in given):
        raise ConfigError(f"data_root is a folder, '…', or a list of them; got {shown(roots)}.")
    return list(given)

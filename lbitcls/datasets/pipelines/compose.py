"""Pipelines: steps built from a config and run in sequence."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbitcls.datasets.pipelines.foreign import MMCVTransform, build_v2
from lbitcls.datasets.pipelines.loading import LoadImageFromFile
from lbitcls.datasets.pipelines.transform import Transform
from lbitcls.datasets.rng import BatchDraws, Draws, fold, fold_array, global_draw, seeded_generators
from lbitcls.registry import PIPELINES
from lbitcls.utils.errors import ConfigError, DataError, shown

Step = Callable[[dict[str, Any]], dict[str, Any]]


def build_transform(cfg: Any) -> Step:
    """Build a pipeline step.

    Args:
        cfg: `dict(type=NAME, …)`, where NAME is a registered step, `v2.NAME` a transform of torchvision, or
            `mmcv.NAME` one of mmcv; or a callable that accepts a sample's dict and returns it.

    Raises:
        ConfigError: Unknown name or key.
    """
    if isinstance(cfg, dict):
        name = cfg.get("type")
        if name is not None and not isinstance(name, str) and not callable(name):
            raise ConfigError(f"a pipeline step must be dict(type='…', …); got {shown(cfg)}.")
        scope, _, rest = name.partition(".") if isinstance(name, str) else ("", "", "")
        arguments = {key: value for key, value in cfg.items() if key != "type"}
        if scope == "v2" and rest:
            return build_v2(rest, arguments)
        if scope == "mmcv" and rest:
            return MMCVTransform(rest, arguments)
        return PIPELINES.build(cfg)
    if not callable(cfg):
        raise ConfigError(f"a pipeline step must be dict(type='…', …); got {cfg!r}.")
    return cfg


class Compose:
    """Run steps in sequence.

    Args:
        transforms: Steps, as dicts or callables. The first one, a `LoadImageFromFile`, reads images; if it is
            missing, one that keeps gray images gray is prepended.

    Example:
        >>> pipeline = Compose([dict(type="Resize", size=8), dict(type="CenterCrop", crop_size=8)])
        >>> pipeline(np.zeros((10, 20, 3), np.uint8))["img"].shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        if isinstance(transforms, (str, dict)) or not isinstance(transforms, Sequence):
            raise ConfigError(f"a pipeline must be a list of steps; got {transforms!r}.")
        built = [build_transform(step) for step in transforms]
        self.transforms = [part for step in built for part in getattr(step, "steps", [step])]
        if not any(isinstance(step, LoadImageFromFile) for step in self.transforms):
            self.transforms.insert(0, LoadImageFromFile(color_type="unchanged"))
        self._own = [isinstance(step, Transform) for step in self.transforms]
        self._seeds = not all(self._own)

    def __call__(self, data: Any, key: int | None = None) -> dict[str, Any]:
        """Run the pipeline on one sample.

        Args:
            data: File name; an array, tensor or Pillow image (see `as_image`); or a dict with `img` or with
                `img_info=dict(filename=…)` and `img_prefix`.
            key: Stream of the sample's random numbers; None draws them from the global generators.

        Returns:
            The sample's dict after the last step.
        """
        results = _as_dict(data)
        if key is None or not self._seeds:
            return self._run(results, key)
        with seeded_generators(key):
            return self._run(results, key)

    def _run(self, results: dict[str, Any], key: int | None) -> dict[str, Any]:
        for position, step in enumerate(self.transforms):
            with _explained(step):
                if isinstance(step, Transform):
                    results = step.process(results, global_draw if key is None else Draws(fold(key, position)))
                else:
                    results = step(results)
            if results is None:
                raise DataError(f"the pipeline step {step!r} returned None instead of the sample's dict.")
        return results

    @property
    def random_steps(self) -> list[Step]:
        """Return the steps that are not marked as deterministic."""
        return [step for step in self.transforms if not getattr(step, "deterministic", False)]

    @property
    def batchwise(self) -> bool:
        """True if every step has a batch form."""
        return all(isinstance(step, Transform) and step.batchwise for step in self.transforms)

    def batch(self, imgs: Tensor, keys: np.ndarray) -> Tensor:
        """Run the pipeline on images (N, C, H, W) of one size, which may be overwritten.

        Args:
            imgs: uint8.
            keys: Stream of each sample, uint64 (N,).
        """
        for position, step in enumerate(self.transforms):
            assert isinstance(step, Transform)
            with _explained(step):
                imgs = step.apply_batch(imgs, BatchDraws(fold_array(keys, position)))
        return imgs

    def load(self, path: str) -> Tensor:
        """Return the image in a file as the pipeline reads it: uint8 (C, H, W)."""
        return next(step for step in self.transforms if isinstance(step, LoadImageFromFile)).load(path)

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


@contextlib.contextmanager
def _explained(step: Step) -> Iterator[None]:
    """Turn an error inside a built-in step into a `DataError` that names the step: its settings do not suit the image.

    An error in a custom step keeps its type and traceback.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        if type(step).__module__.partition(".")[0] != "lbitcls" or isinstance(error, NotImplementedError):
            raise
        raise DataError(
            f"the pipeline step {step!r} does not suit an image: {type(error).__name__}: {error}. Fix its settings, "
            "or the steps before it."
        ) from error


def _as_dict(data: Any) -> dict[str, Any]:
    if isinstance(data, dict):
        return dict(data)
    if isinstance(data, (str, os.PathLike)):
        return {"img_info": {"filename": os.fspath(data)}, "img_prefix": None}
    if isinstance(data, (np.ndarray, torch.Tensor)) or hasattr(data, "convert"):
        return {"img": data}
    raise DataError(f"a sample must be a file name, an array, an image or a dict; got {type(data).__name__}.")

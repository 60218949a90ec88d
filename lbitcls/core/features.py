"""Feature cache (`feature_cache=True`): with a frozen backbone, each image's features are computed once and kept.

It requires a pipeline without random steps: that of the training set, or `pipeline`, which applies only while the
backbone is frozen, so that a backbone which trains later sees random images. A batch with a new sample is read and
passed through the backbone as usual, so the first epoch takes its normal time; after that the head learns from stored
features, and no image is read. The result equals that without the cache if a sample's features do not depend on the
other samples of its batch; this is checked on the first batch, and a difference causes a warning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from lbitcls.settings.training_sections import FeatureCacheConfig
from lbitcls.utils.errors import ConfigError

if TYPE_CHECKING:
    import logging

    from lbitcls.core.step import Batch, OptimizerStep
    from lbitcls.protocols import BatchLoader, Dataset, FixedFeatures


class Run(Protocol):
    """Part of the runner that the cache uses (`lbitcls.core.runner.EpochRunner`)."""

    epoch: int
    max_epochs: int
    phase: str
    module: nn.Module
    step: OptimizerStep
    logger: logging.Logger

    def to_device(self, batch: Batch) -> Batch:
        """Return the batch on the model's device."""
        ...


@dataclass
class _Store:
    """Features of the samples of one data set, by sample index."""

    known: np.ndarray
    phase: str
    values: Tensor | None = None
    layout: torch.memory_format = torch.contiguous_format

    def put(self, indices: Tensor, features: Tensor) -> None:
        """Store the features (N, …) of the samples `indices`."""
        if self.values is None:
            maps = features.dim() == 4 and not features.is_contiguous()
            self.layout = torch.channels_last if maps else torch.contiguous_format
            self.values = features.new_empty((len(self.known), *features.shape[1:]))
        self.values[indices.to(features.device)] = features
        self.known[indices.numpy()] = True

    def take(self, indices: np.ndarray) -> Tensor:
        """Return the features (N, …) of the samples `indices`, in the memory layout they were computed in."""
        assert self.values is not None
        chosen = torch.from_numpy(indices).to(self.values.device)
        return self.values[chosen].contiguous(memory_format=self.layout)


@dataclass
class FeatureCache:
    """Source of a run's batches that replaces images by cached features if possible.

    Args:
        enabled: False: batches are handed through as they are.
        max_mib: what the features of all data sets may take, in MiB; where it is more, they are computed each time.
        fixed: Loader of the training images while no part before the head changes; None: the run's own.
        unused_for: where it is not enabled though no part before the head changes: the random steps that forbid it,
            `''` for none; None: it could not save anything. What it would save is logged once.
        computed: Number of batches whose features were computed while the cache was on, in training and validation.
    """

    enabled: bool = False
    max_mib: float = FeatureCacheConfig.max_mib
    fixed: BatchLoader | None = None
    unused_for: str | None = None
    computed: dict[str, int] = field(default_factory=lambda: {"train": 0, "val": 0}, init=False)
    _stores: dict[int, _Store] = field(default_factory=dict)  # by the loader's id

    def batches(self, runner: Run, loader: BatchLoader, training: bool, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `loader` from number `start` on: `img`, or else `features`, and `gt_label`.

        Args:
            runner: Runner whose position gives the epoch and whose model computes the features.
            loader: Data loader of the training or validation set.
            training: True for training batches, in the precision of training.
            start: Number of the first batch.
        """
        epoch = runner.epoch if training else 0
        changing = bool(cast("FixedFeatures", runner.module).moving_parts) if self.enabled or self.fixed else True
        if training and self.fixed is not None and not changing:
            loader = self.fixed
        if not self._usable(runner, changing):
            began = time.monotonic()
            yield from loader.iterate(epoch, start)
            if training and start == 0:
                self._advise(runner, time.monotonic() - began)
            return
        store = self._store(loader, runner.phase)
        indices = loader.indices(epoch)
        missing = [number for number in range(start, len(indices)) if not store.known[indices[number]].all()]
        read = loader.read(epoch, missing)
        new = set(missing)
        found = next(read, None)
        for number in range(start, len(indices)):
            if number not in new:
                chosen = indices[number]
                labels = torch.from_numpy(loader.dataset.labels[chosen])
                yield {"features": store.take(chosen), "gt_label": labels, "index": torch.from_numpy(chosen)}
            elif found is not None and found[0] == number:  # otherwise none of its images can be read
                yield self._computed(runner, store, found[1], training)
                found = next(read, None)

    def _store(self, loader: BatchLoader, phase: str) -> _Store:
        store = self._stores.setdefault(id(loader), _Store(np.zeros(len(loader.dataset), dtype=bool), phase))
        if store.phase != phase:  # the quantizers were switched on: the features change
            store.known[:] = False
            store.phase = phase
        return store

    def _usable(self, runner: Run, changing: bool) -> bool:
        if self.enabled and changing:
            runner.logger.info("feature_cache: Dropping the features, because the backbone trains from now on.")
            self._drop()
        return self.enabled

    def _advise(self, runner: Run, seconds: float) -> None:
        """Log once, after an epoch that took `seconds`, what the cache would save in later epochs."""
        reason, self.unused_for = self.unused_for, None
        left = runner.max_epochs - runner.epoch - 1
        if reason is None or left < 1:
            return
        condition = f", which needs the same images in every epoch: data.train has {reason}" if reason else ""
        runner.logger.info(
            "The backbone is frozen, but its features are computed in every epoch. feature_cache=True would save most "
            "of the %.1f s per epoch in the remaining %d%s.",
            *(seconds, left, condition),
        )

    def _drop(self) -> None:
        self.enabled = False
        self._stores.clear()

    def _computed(self, runner: Run, store: _Store, batch: Batch, training: bool) -> Batch:
        """Return a batch with its images replaced by their features, which are stored."""
        if not self.enabled:
            return batch
        self.computed["train" if training else "val"] += 1
        img = runner.to_device(batch)["img"]
        features = _features(runner, img, training)
        if store.values is None:
            if not self._fits(runner, features, len(store.known)):
                return batch
            _try_alone(runner, img, features, training)
        store.put(batch["index"], features)
        return {"features": features, "gt_label": batch["gt_label"], "index": batch["index"]}

    def _fits(self, runner: Run, features: Tensor, number: int) -> bool:
        taken = sum(s.values.numel() * s.values.element_size() for s in self._stores.values() if s.values is not None)
        mib = (taken + features[0].numel() * features.element_size() * number) / 2**20
        if mib > self.max_mib:
            runner.logger.warning(
                "feature_cache: The features need %.0f MiB, more than max_mib=%g: they are computed in every epoch.",
                *(mib, self.max_mib),
            )
            self._drop()
            return False
        runner.logger.info("feature_cache: Keeping the features of %d images, %.1f MiB in total.", number, mib)
        return True


def _features(runner: Run, img: Tensor, training: bool) -> Tensor:
    """Return the features of images (N, C, H, W), in the precision of training or validation."""
    model = cast("FixedFeatures", runner.module)
    dtype = runner.step.precision.dtype if training else None
    with torch.autocast(runner.step.device.type, dtype=dtype, enabled=dtype is not None):
        return model.fixed_features(img)


def _try_alone(runner: Run, img: Tensor, features: Tensor, training: bool) -> None:
    """Compare with the features of the same images in another order and in a smaller batch."""
    other = _features(runner, img.flip(0)[len(img) // 2 :], training).flip(0)
    difference = (other - features[: len(other)]).abs().max().item()
    if difference > 0:
        runner.logger.warning(
            "feature_cache: On this machine an image's features depend on its batch, by up to %.1e: results differ "
            "from those without the cache by as much.",
            difference,
        )


def build_feature_cache(
    settings: FeatureCacheConfig | None,
    model: nn.Module,
    datasets: Mapping[str, Dataset],
    compiled: bool = False,
    later: Sequence[str] = (),
    fixed: BatchLoader | None = None,
) -> FeatureCache:
    """Build the feature cache of a run.

    Args:
        settings: Settings of the cache; None: it is off.
        model: Classifier.
        datasets: Data sets whose features are cached, by their names in messages.
        compiled: True if the whole model is compiled.
        later: Names of parts that a hook keeps frozen until some epoch.
        fixed: Loader of the training images while the backbone is frozen, if they have another pipeline.

    Raises:
        ConfigError: The features would change, because the backbone trains, a pipeline step is random, or batches are
            mixed; or the model is compiled.
    """
    if settings is None:
        return FeatureCache(unused_for=_unused_for(model, datasets, compiled, later))
    moving: list[str] = getattr(model, "moving_parts", ["the model"])
    moving = [part for part in moving if not any(f"{part}.".startswith(f"{name}.") for name in later)]
    if moving:
        raise ConfigError(
            f"feature_cache needs a backbone that does not change: set model.backbone.frozen=True ({moving[0]} trains)."
        )
    if getattr(model, "augments", None) is not None or compiled:
        other = "compile" if compiled else "model.train_cfg.augments, which mixes images"
        raise ConfigError(f"feature_cache cannot be combined with {other}; remove one of them.")
    for name, dataset in datasets.items():
        steps = ", ".join(repr(step) for step in dataset.pipeline.random_steps)
        if steps:
            raise ConfigError(
                f"feature_cache needs the same image in every epoch, but the pipeline of {name} has random steps: "
                f"{steps}. Replace them by Resize and CenterCrop, give feature_cache.pipeline, or remove feature_cache."
            )
    return FeatureCache(enabled=True, max_mib=settings.max_mib, fixed=fixed)


def _unused_for(model: nn.Module, datasets: Mapping[str, Dataset], compiled: bool, later: Sequence[str]) -> str | None:
    """Return the random steps that alone prevent the cache for training images, or None if it cannot help."""
    frozen = not getattr(model, "moving_parts", True) and hasattr(model, "fixed_features")
    if not frozen or later or compiled or getattr(model, "augments", None) is not None:
        return None
    return ", ".join(repr(step) for step in datasets["data.train"].pipeline.random_steps)

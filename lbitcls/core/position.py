"""Position of a run in its data, counted in samples, from which any number of processes continues.

The order of an epoch depends on the seed and the epoch alone, and a batch of all ranks together is a slice of it. So
after S samples of an epoch, a run on other processes or with other batches goes on with sample S + 1; with as many
samples per step as before, its steps are the same. With fewer or more, iterations are renumbered: the epoch's last one
keeps the number `epoch_len` of the new run, and `iter` is what it would be had the whole run had such epochs. The
learning rate, a function of them, therefore continues at the same part of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import logging

    from lbitcls.core.features import FeatureCache
    from lbitcls.protocols import BatchLoader


class Run(Protocol):
    """Part of the runner that a position consists of (`lbitcls.core.runner.EpochRunner`)."""

    epoch: int
    iter: int
    inner_iter: int
    images: int
    loader: BatchLoader
    features: FeatureCache
    logger: logging.Logger


def position_meta(runner: Run) -> dict[str, int]:
    """Return the position as a checkpoint contains it."""
    return {
        "epoch": runner.epoch,
        "iter": runner.iter,
        "inner_iter": runner.inner_iter,
        "samples": runner.loader.samples_before(runner.epoch, runner.inner_iter),
        "images": runner.images,
        "epoch_len": len(runner.loader),
        "data_len": len(runner.loader.dataset),
    }


def take_position(runner: Run, meta: Mapping[str, Any]) -> None:
    """Continue from the position in a checkpoint's metadata.

    The epoch starts again, with a warning, if the training set has another number of samples, or if an older
    checkpoint, which does not count samples, had epochs of another length.
    """
    runner.epoch, runner.iter, runner.inner_iter = meta["epoch"], meta["iter"], meta["inner_iter"]
    runner.images = meta.get("images", 0)
    length, number = len(runner.loader), len(runner.loader.dataset)
    samples, saved_number = meta.get("samples"), meta.get("data_len", number)
    if saved_number != number or (samples is None and meta["epoch_len"] != length):
        runner.logger.warning(
            "An epoch had %d iterations when this run was saved and has %d now (other data, batch size or number "
            "of processes): resuming from the beginning of epoch %d; results will differ.",
            *(meta["epoch_len"], length, runner.epoch + 1),
        )
        runner.iter, runner.inner_iter = runner.epoch * length, 0
    elif samples is not None:
        _enter_epoch(runner, samples, meta["epoch_len"])


def _enter_epoch(runner: Run, samples: int, epoch_len: int) -> None:
    """Enter the epoch after `samples` of its samples, in a run whose epochs had `epoch_len` iterations."""
    length, inner_iter = len(runner.loader), runner.inner_iter
    runner.inner_iter = runner.loader.begin(runner.epoch, samples)
    if runner.features.fixed is not None:
        runner.features.fixed.begin(runner.epoch, samples)
    if (length, runner.inner_iter) == (epoch_len, inner_iter):
        return
    runner.iter = runner.epoch * length + runner.inner_iter
    runner.logger.info(
        "An epoch had %d iterations when this run was saved and has %d now (another batch size or number of "
        "processes): continuing after %d of its %d images, at iteration %d.",
        *(epoch_len, length, samples, len(runner.loader.dataset), runner.inner_iter),
    )

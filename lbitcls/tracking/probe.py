"""Images on which hooks inspect a model during a run: a few of the validation set, always the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.datasets import build_dataloader
from lbitcls.datasets.base import BaseDataset
from lbitcls.datasets.subset import Subset
from lbitcls.tracking.run_pictures import mixed
from lbitcls.utils.errors import DataError

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


def probed_dataset(runner: EpochRunner) -> tuple[str, BaseDataset]:
    """Return the split of the inspected data set, and the data set: of validation, or else of training."""
    validation = runner.find(EvaluationHook)
    loader = runner.loader if validation is None else validation.loader
    return ("train" if validation is None else "val"), cast(BaseDataset, loader.dataset)


def read_probe(dataset: BaseDataset, number: int) -> dict[str, torch.Tensor]:
    """Return a batch of `number` images that mixes the classes; `index` is their position in the data set.

    Raises:
        DataError: None of the images can be read.
    """
    positions = mixed(dataset, number)
    batch = next(iter(build_dataloader(Subset(dataset, positions), number)), None)
    if batch is None:
        raise DataError("none of the images can be read.")
    return {**batch, "index": torch.tensor(positions)[batch["index"]]}

"""Batches of a data set, in an order and with an augmentation that depend on (seed, epoch, index) alone.

So they are the same on any number of worker processes, whatever was read before, and when a run is taken up
in the middle of an epoch. Neither does reading touch the global random number generators of the process.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lbitcls.datasets.base import LEAVE_OUT, BaseDataset
from lbitcls.datasets.batching import collate
from lbitcls.datasets.pipelines.pillow import UnreadableImage
from lbitcls.datasets.rng import shuffled
from lbitcls.datasets.workers import outlive_signals
from lbitcls.utils.errors import ConfigError, DataError, LbitclsError

_MOST_WORKERS = 1024

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Key:
    """What the sampler asks a worker for: some samples of an epoch."""

    epoch: int
    indices: np.ndarray


@dataclass(frozen=True)
class _Failure:
    """An error for the user, on its way from a worker process (torch would wrap it into a traceback)."""

    error: LbitclsError


class _Batches(Dataset):
    """A data set whose items are whole batches; what a worker process holds.

    Args:
        dataset: the data set.
        seed: of the augmentation.
        refill: put other samples in the place of a batch of which nothing can be read, so that training sees
            every batch that it counts on.
    """

    def __init__(self, dataset: BaseDataset, seed: int, refill: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.refill = refill

    def __getitem__(self, key: _Key) -> dict[str, Any] | _Failure:
        try:
            if self.dataset.batchwise:
                batch = self.dataset.batch(self.seed, key.epoch, key.indices)
                return {**batch, "index": torch.from_numpy(key.indices)}
            return self._collated(key)
        except LbitclsError as error:
            return _Failure(error)

    def _collated(self, key: _Key) -> dict[str, Any]:
        skipped: dict[int, str] = {}
        samples = [self._read(key.epoch, index, skipped) for index in key.indices.tolist()]
        if self.refill and not any(samples):
            samples = [self._next_readable(key.epoch, index, skipped) for index in key.indices.tolist()]
        readable = [sample for sample in samples if sample]
        batch = collate(readable, len(readable)) if readable else {}
        return {**batch, "skipped": skipped} if skipped else batch

    def _read(self, epoch: int, index: int, skipped: dict[int, str]) -> dict[str, Any]:
        """The sample, or an empty dict for one that is left out."""
        try:
            return {**self.dataset.sample(self.seed, epoch, index), "index": index}
        except UnreadableImage as error:
            if self.dataset.on_error == "raise":
                raise UnreadableImage(f"{error} {LEAVE_OUT}") from error
            skipped[index] = str(error)
            return {}

    def _next_readable(self, epoch: int, index: int, skipped: dict[int, str]) -> dict[str, Any]:
        count = len(self.dataset)
        for step in range(1, count):
            sample = self._read(epoch, (index + step) % count, skipped)
            if sample:
                return sample
        raise DataError(f"none of the {count} images can be read; the first: {next(iter(skipped.values()))}")


class Loader:
    """Batches of a data set; see `build_dataloader`."""

    def __init__(
        self,
        dataset: BaseDataset,
        samples_per_gpu: int,
        workers_per_gpu: int = 0,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        pin_memory: bool = False,
    ) -> None:
        _check_count("samples_per_gpu", samples_per_gpu, 1)
        _check_count("workers_per_gpu", workers_per_gpu, 0)
        if workers_per_gpu > _MOST_WORKERS:
            raise ConfigError(f"workers_per_gpu is at most {_MOST_WORKERS}; got {workers_per_gpu}.")
        self.dataset = dataset
        self.batch_size = samples_per_gpu
        self.shuffle = shuffle
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.drop_last = drop_last
        self._pin = pin_memory and torch.cuda.is_available()
        self._batches = _Batches(dataset, seed, refill=shuffle)
        # Worker processes would only add copies where a batch is a few operations on memory.
        self._workers = 0 if dataset.batchwise else workers_per_gpu
        self._asked: list[_Key] = []
        self._processes: DataLoader | None = None

    @property
    def skipped(self) -> dict[int, str]:
        """Message by index of every image that was left out so far (`on_error='skip'`)."""
        return self.dataset.skipped

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        count, size = self._samples(), self.batch_size
        return count // size if self.drop_last else -(-count // size)

    def _samples(self) -> int:
        """Samples of an epoch on this rank."""
        if self.shuffle:
            return -(-len(self.dataset) // self.world_size)
        return len(range(self.rank, len(self.dataset), self.world_size))

    def order(self, epoch: int) -> np.ndarray:
        """Indices of this rank's samples in the order of the epoch, int64."""
        count = len(self.dataset)
        if not self.shuffle:
            return np.arange(self.rank, count, self.world_size)
        everywhere = shuffled(count, self.seed, epoch)
        padded = np.resize(everywhere, self._samples() * self.world_size)  # repeats from the beginning
        return padded[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate(0)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """The batches of an epoch.

        Args:
            epoch: decides the order (when shuffling) and the augmentation.
            start: number of the first batch to give; those before it are not read.

        Raises:
            DataError: an image cannot be read, or images of a batch differ in size.
        """
        for _, batch in self.read(epoch, range(start, len(self))):
            yield batch

    def indices(self, epoch: int) -> list[np.ndarray]:
        """Indices of the samples of each batch of an epoch, int64."""
        order, size = self.order(epoch), self.batch_size
        return [order[i * size : (i + 1) * size] for i in range(len(self))]

    def read(self, epoch: int, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Some batches of an epoch, each with its number; the others are not read.

        Raises:
            DataError: as `iterate`.
        """
        indices = self.indices(epoch)
        batches = self._fetch([_Key(epoch, indices[number]) for number in numbers])
        for number, batch in zip(numbers, batches, strict=True):
            if isinstance(batch, _Failure):
                # Now, not when the error is forgotten: torch takes seconds to stop workers that the garbage
                # collector finds.
                batches.close()
                self.close()
                raise batch.error
            self._note(batch.pop("skipped", {}))
            if batch:
                yield number, batch

    def close(self) -> None:
        """Stop the worker processes; another iteration starts new ones."""
        self._processes = None

    def _fetch(self, keys: list[_Key]) -> Generator[Any, None, None]:
        if self._workers:
            if self._processes is None:
                self._processes = self._start()
            self._asked[:] = keys
            yield from self._processes
        else:
            for key in keys:
                yield self._pinned(self._batches[key])

    def _start(self) -> DataLoader:
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=_Asked(self._asked),
            num_workers=self._workers,
            persistent_workers=True,
            pin_memory=self._pin,
            collate_fn=_as_is,
            worker_init_fn=outlive_signals,
            # Its own generator: otherwise torch draws the workers' seed from the global one.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _pinned(self, batch: Any) -> Any:
        if not self._pin or isinstance(batch, _Failure):
            return batch
        return {key: v.pin_memory() if isinstance(v, torch.Tensor) else v for key, v in batch.items()}

    def _note(self, skipped: dict[int, str]) -> None:
        for index, message in skipped.items():
            if index not in self.skipped:
                self.skipped[index] = message
                _logger.warning("left out an image (%d so far): %s", len(self.skipped), message)


class _Asked:
    """The sampler of the worker processes: the keys asked for, as they are when the iteration begins."""

    def __init__(self, keys: list[_Key]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[_Key]:
        return iter(list(self._keys))

    def __len__(self) -> int:
        return len(self._keys)


def _as_is(batch: Any) -> Any:
    return batch


def _check_count(key: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{key} is a whole number, at least {least}; got {value!r}.")


def build_dataloader(
    dataset: BaseDataset,
    samples_per_gpu: int,
    workers_per_gpu: int = 0,
    *,
    shuffle: bool = False,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    pin_memory: bool = False,
) -> Loader:
    """Batch a data set.

    Args:
        dataset: from `build_dataset`.
        samples_per_gpu: samples in a batch.
        workers_per_gpu: processes that read and augment; 0: in this process, as always for images in memory
            whose pipeline has a batch form.
        shuffle: another order in each epoch, a function of (seed, epoch). Ranks then get equally many
            samples, some twice if need be. Without it rank r gets the samples r, r + world_size, …: each
            sample once.
        seed: of order and augmentation.
        rank: number of this process.
        world_size: number of processes.
        drop_last: leave out a last batch that is not full.
        pin_memory: put batches into page-locked memory (where there is a GPU).

    Returns:
        A loader: `len(loader)` batches; `loader.iterate(epoch, start=0)` gives them from batch `start` on. A
        batch is a dict: `img` float32 (N, C, H, W), `gt_label` int64 (N,), `index` int64 (N,), the position
        in the data set, and what else the pipeline collects. Under `on_error='skip'` a batch lacks the images
        that cannot be read; one of which none can is left out, or when shuffling filled with the samples that
        follow.

    Raises:
        ConfigError: a count that is none.
    """
    return Loader(
        dataset,
        samples_per_gpu,
        workers_per_gpu,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        pin_memory=pin_memory,
    )

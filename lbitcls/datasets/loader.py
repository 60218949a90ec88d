"""Data loader whose order and augmentation depend on (seed, epoch, index) alone.

Batches are therefore the same for any number of worker processes, whatever was read before, and when a run resumes in
the middle of an epoch. Reading does not touch the process's global random number generators either.

In training, batch n of all ranks together is a slice of the epoch's order, dealt out to the ranks sample by sample. So
a position is a number of samples, which any number of ranks with any batch size can continue from (as in MosaicML's
Streaming): each sample is trained on once. Only the last batch of an epoch may be uneven.
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
from lbitcls.utils.errors import MOST, ConfigError, DataError, LbitclsError, shown

_MOST_WORKERS = 1024  # processes, each a copy of this one's memory

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Key:
    """Request from the sampler to a worker: some samples of an epoch."""

    epoch: int
    indices: np.ndarray


@dataclass(frozen=True)
class _Failure:
    """User error on its way from a worker process (torch would wrap it in a traceback)."""

    error: LbitclsError


class _Batches(Dataset):
    """Data set whose items are whole batches; the worker processes' side of `Loader`.

    Args:
        dataset: Data set of single samples.
        seed: Augmentation seed.
        refill: Replace a batch in which nothing is readable by other samples, so that training gets every batch
            it expects.
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
        """Return the sample, or an empty dict if it is skipped."""
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
    """Loader of a data set's batches; see `build_dataloader`."""

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
        _check_count("samples_per_gpu", samples_per_gpu, 1, MOST)
        _check_count("workers_per_gpu", workers_per_gpu, 0, _MOST_WORKERS)
        self.dataset = dataset
        self.batch_size = samples_per_gpu
        self.shuffle = shuffle
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.drop_last = drop_last
        self._pin = pin_memory and torch.cuda.is_available()
        self._batches = _Batches(dataset, seed, refill=shuffle)
        # Worker processes would only add copies if a batch is a few operations in memory.
        self._workers = 0 if dataset.batchwise else workers_per_gpu
        self._begun = (-1, 0, 0)  # epoch entered in its middle, samples before that, number of its first batch
        self._asked: list[_Key] = []
        self._processes: DataLoader | None = None

    @property
    def skipped(self) -> dict[int, str]:
        """Message for each image skipped so far (`on_error='skip'`), by index."""
        return self.dataset.skipped

    def __len__(self) -> int:
        """Return the number of batches per epoch on this rank."""
        if self.shuffle:
            return self._number(len(self.dataset), self.batch_size * self.world_size)
        return self._number(len(range(self.rank, len(self.dataset), self.world_size)), self.batch_size)

    def _number(self, samples: int, size: int) -> int:
        """Return the number of batches of `size` samples."""
        return samples // size if self.drop_last else -(-samples // size)

    def order(self, epoch: int) -> np.ndarray:
        """Return the indices of this rank's samples in the epoch's order, int64."""
        return self._everywhere(epoch)[self.rank :: self.world_size]

    def _everywhere(self, epoch: int) -> np.ndarray:
        """Return the indices of the epoch's samples on all ranks, without those before the point it is entered at."""
        count, (begun, samples, _) = len(self.dataset), self._begun
        order = shuffled(count, self.seed, epoch) if self.shuffle else np.arange(count)
        return order[samples:] if epoch == begun else order

    def _first(self, epoch: int) -> int:
        """Return the number of the first batch of an epoch: 0 unless it is entered in its middle."""
        begun, _, first = self._begun
        return first if epoch == begun else 0

    def begin(self, epoch: int, samples: int) -> int:
        """Enter an epoch after `samples` samples of its order, which all ranks together have trained on.

        Returns:
            Number of the next batch. The epoch's last batch keeps its number, so that those left count up to it.
        """
        size, left = self.batch_size * self.world_size, max(len(self.dataset) - samples, 0)
        first = len(self) - self._number(left, size)
        self._begun = (epoch, samples, first)
        return first

    def samples_before(self, epoch: int, number: int) -> int:
        """Return the number of samples of the epoch's order, on all ranks, before batch `number`.

        It is the whole epoch's if no batch is left, including those that `drop_last` drops.
        """
        count, (begun, samples, _) = len(self.dataset), self._begun
        if number >= len(self):
            return count
        before = samples if epoch == begun else 0
        return before + (number - self._first(epoch)) * self.batch_size * self.world_size

    def share(self, epoch: int, number: int) -> tuple[int, int]:
        """Return the numbers of samples in a shuffled epoch's batch `number`: on this rank, and on all together.

        A rank that gets no sample of the last batch has 0; its batch is a stand-in, which keeps it in step.
        """
        before, size = self.samples_before(epoch, number), self.batch_size * self.world_size
        total = min(len(self.dataset) - before, size)
        return len(range(self.rank, total, self.world_size)), total

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate(0)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch.

        Args:
            epoch: Epoch, which determines the order (when shuffling) and the augmentation.
            start: Index of the first batch to yield; earlier ones are not read.

        Raises:
            DataError: An image cannot be read, or images of a batch differ in size.
        """
        for _, batch in self.read(epoch, range(start, len(self))):
            yield batch

    def indices(self, epoch: int) -> list[np.ndarray]:
        """Return the sample indices of each batch of an epoch, int64; none for those before the point it is entered at.

        A rank without a sample of the last batch has samples of the epoch's beginning there.
        """
        everywhere, size, first = self._everywhere(epoch), self.batch_size, self._first(epoch)
        own = everywhere[self.rank :: self.world_size]
        batches = [own[i * size : (i + 1) * size] for i in range(len(self) - first)]
        if batches and not len(batches[-1]):
            batches[-1] = everywhere[:size]
        return [own[:0]] * first + batches

    def read(self, epoch: int, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield selected batches of an epoch, each with its index; others are not read.

        Raises:
            DataError: As for `iterate`.
        """
        indices = self.indices(epoch)
        batches = self._fetch([_Key(epoch, indices[number]) for number in numbers])
        for number, batch in zip(numbers, batches, strict=True):
            if isinstance(batch, _Failure):
                # Now rather than when the error is garbage-collected: stopping workers from the garbage collector takes
                # torch seconds.
                batches.close()
                self.close()
                raise batch.error
            self._note(batch.pop("skipped", {}))
            if batch:
                yield number, batch

    def close(self) -> None:
        """Stop the worker processes; the next iteration starts new ones."""
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
            # A separate generator: otherwise torch draws the workers' seed from the global one.
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
                _logger.warning("Leaving out an unreadable image (%d so far): %s", len(self.skipped), message)


class _Asked:
    """Sampler for the worker processes: the requested keys at the start of the iteration."""

    def __init__(self, keys: list[_Key]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[_Key]:
        return iter(list(self._keys))

    def __len__(self) -> int:
        return len(self._keys)


def _as_is(batch: Any) -> Any:
    return batch


def _check_count(key: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{key} must be an integer from {least} to {most:,}; got {shown(value)}.")


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
    """Build a loader that batches a data set.

    Args:
        dataset: Data set from `build_dataset`.
        samples_per_gpu: Batch size, at least 1.
        workers_per_gpu: Number of processes that read and augment. With 0, this process does; so it always does
            for images in memory whose pipeline has a batch form.
        shuffle: Use a different order in each epoch, a function of (seed, epoch). All ranks then get equally many
            batches. Rank r gets the samples r, r + world_size, … of the order, shuffled or not: each sample once.
        seed: Seed of order and augmentation.
        rank: Rank of this process.
        world_size: Number of processes.
        drop_last: Drop the last batch if it is not full (when shuffling, on all ranks together).
        pin_memory: Copy batches into page-locked memory (if there is a GPU).

    Returns:
        A loader with `len(loader)` batches; `loader.iterate(epoch, start=0)` yields them from batch `start` on. A
        batch is a dict: `img` float32 (N, C, H, W), `gt_label` int64 (N,), `index` int64 (N,), the position in
        the data set, and anything else the pipeline collects. With `on_error='skip'`, unreadable images are
        missing from a batch; a batch without any readable image is left out, or when shuffling, filled with the
        samples that follow.

    Raises:
        ConfigError: A count is not an integer in its range.
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

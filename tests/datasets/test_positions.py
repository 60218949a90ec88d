"""A position in an epoch is a number of samples: any number of ranks, batch size and worker processes continues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.datasets.loader import Loader
from lbitcls.datasets.rng import shuffled

NUMBER, SEED, EPOCH = 360, 5, 2


def loaders(ranks: int, size: int, steps: list[dict[str, Any]] | None = None, **options: Any) -> list[Loader]:
    pipeline = [*(steps or ()), dict(type="Normalize", mean=[0.0], std=[1.0])]
    dataset = build_dataset(dict(type="Digits", split="test", pipeline=pipeline))
    common = dict(shuffle=True, seed=SEED, world_size=ranks, **options)
    return [build_dataloader(dataset, size, rank=rank, **common) for rank in range(ranks)]


def dealt(members: list[Loader], number: int) -> list[int]:
    """Samples of batch `number` of all ranks in the epoch's order; a rank's stand-in is left out."""
    shares = [member.share(EPOCH, number) for member in members]
    parts = [member.indices(EPOCH)[number][:own] for member, (own, _) in zip(members, shares)]
    assert {total for _, total in shares} == {sum(len(part) for part in parts)}
    order = np.empty(sum(map(len, parts)), dtype=np.int64)
    for rank, part in enumerate(parts):
        order[rank :: len(members)] = part
    return order.tolist()


@pytest.mark.parametrize(("ranks", "size"), [(1, 50), (2, 25), (2, 64), (3, 7), (7, 50), (400, 3)])
def test_ranks_share_each_epoch_in_one_order(ranks: int, size: int) -> None:
    members = loaders(ranks, size)
    found = [index for number in range(len(members[0])) for index in dealt(members, number)]
    assert found == shuffled(NUMBER, SEED, EPOCH).tolist()


@pytest.mark.parametrize("samples", [0, 1, 100, 199, 359, 360])
@pytest.mark.parametrize(
    ("ranks", "size", "drop_last"), [(1, 50, False), (4, 25, False), (3, 20, True), (7, 60, False)]
)
def test_an_epoch_is_entered_after_any_sample(samples: int, ranks: int, size: int, drop_last: bool) -> None:
    members = loaders(ranks, size, drop_last=drop_last)
    (first,) = {member.begin(EPOCH, samples) for member in members}
    length = len(members[0])
    found = [index for number in range(first, length) for index in dealt(members, number)]
    left = shuffled(NUMBER, SEED, EPOCH)[samples:].tolist()
    assert found == left[: len(left) // (ranks * size) * ranks * size if drop_last else None]
    positions = [members[0].samples_before(EPOCH, number) for number in range(first, length)]
    assert positions == [samples + n * ranks * size for n in range(length - first)]
    assert members[0].samples_before(EPOCH, length) == NUMBER
    later = sum(len(member.indices(EPOCH + 1)[0]) for member in members)
    assert later == min(NUMBER, ranks * size)  # the next epoch is whole


def test_worker_processes_read_the_rest_of_an_epoch() -> None:
    read = []
    for workers in (0, 2):
        loader = loaders(2, 30, workers_per_gpu=workers, steps=[dict(type="v2.RandomRotation", degrees=10)])[1]
        first = loader.begin(EPOCH, 130)
        read.append([batch["index"].tolist() for batch in loader.iterate(EPOCH, first)])
        loader.close()
    assert read[0] == read[1] == [part.tolist() for part in loader.indices(EPOCH)[first:]]


def test_a_rank_without_samples_has_a_stand_in() -> None:
    members = loaders(7, 60)
    members[0].begin(EPOCH, 358), members[6].begin(EPOCH, 358)
    assert members[0].share(EPOCH, 0) == (1, 2) and members[6].share(EPOCH, 0) == (0, 2)
    assert len(next(members[6].iterate(EPOCH))["img"]) == 2

"""Loaders: order, augmentation and coverage depend on (seed, epoch, index) alone."""

from __future__ import annotations

import logging
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.datasets.base import MemoryDataset
from lbitcls.datasets.loader import Loader
from lbitcls.utils.errors import ConfigError, DataError

# Our own and torchvision's steps, which draw from the keyed and from the global generators.
AUGMENTED = [
    dict(type="RandomResizedCrop", size=16),
    dict(type="ColorJitter", brightness=0.5, hue=0.2),
    dict(type="RandomFlip"),
    dict(type="v2.RandomRotation", degrees=20),
    dict(type="Normalize", mean=[127.0] * 3, std=[64.0] * 3),
]
BATCHWISE = [
    dict(type="RandomCrop", size=8, padding=2),
    dict(type="RandomFlip"),
    dict(type="RandomFlip", direction="vertical", flip_prob=0.3),
    dict(type="Normalize", mean=[0.3], std=[0.4]),
]


def _photos(image_folder: Path, **keys: object) -> object:
    return build_dataset(dict(type="ImageFolder", data_prefix=str(image_folder), pipeline=AUGMENTED, **keys))


def _digits(pipeline: list = BATCHWISE) -> object:
    return build_dataset(dict(type="Digits", split="test", pipeline=pipeline))


def _same(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


def test_batches(image_folder: Path) -> None:
    dataset = _photos(image_folder)
    loader = build_dataloader(dataset, 5)
    batches = list(loader)
    assert len(loader) == len(batches) == 3 and [len(b["img"]) for b in batches] == [5, 5, 2]
    assert batches[0].keys() == {"img", "gt_label", "index"}
    assert batches[0]["img"].shape == (5, 3, 16, 16) and batches[0]["img"].dtype == torch.float32
    assert batches[0]["gt_label"].dtype == batches[0]["index"].dtype == torch.int64
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(12))
    assert torch.cat([b["gt_label"] for b in batches]).tolist() == dataset.labels.tolist()


def test_the_same_with_any_number_of_workers_and_from_the_middle(image_folder: Path) -> None:
    dataset = _photos(image_folder)
    loaders = [build_dataloader(dataset, 5, workers, shuffle=True, seed=4) for workers in (0, 1, 2)]
    expected = {epoch: list(loaders[0].iterate(epoch)) for epoch in (0, 1)}
    assert not _same(expected[0], expected[1])
    for loader in loaders:
        assert _same(list(loader.iterate(1)), expected[1])
        next(loader.iterate(3))  # an abandoned epoch
        assert _same(list(loader.iterate(0, start=1)), expected[0][1:])
        assert _same(list(loader), expected[0])
        assert list(loader.iterate(0, start=3)) == []


def test_a_sample_is_the_same_alone_and_in_a_batch(image_folder: Path) -> None:
    for dataset in (_photos(image_folder), _digits()):
        dataset.seed = 4
        for batch in build_dataloader(dataset, 5, shuffle=True, seed=4).iterate(2):
            for row, index in enumerate(batch["index"].tolist()):
                assert torch.equal(dataset[(2, index)]["img"], batch["img"][row])
        assert torch.equal(dataset[3]["img"], dataset[(0, 3)]["img"])
        assert not torch.equal(dataset[(1, 3)]["img"], dataset[(0, 3)]["img"])


def test_the_batch_form_gives_what_single_samples_give() -> None:
    batchwise = build_dataloader(_digits(), 64, 2, shuffle=True, seed=1)
    single = build_dataloader(_digits(), 64, shuffle=True, seed=1)
    assert single._batches.dataset.batchwise
    type(single._batches.dataset).batchwise, saved = False, MemoryDataset.batchwise
    try:
        expected = list(single.iterate(3))
    finally:
        del type(single._batches.dataset).batchwise
    assert MemoryDataset.batchwise is saved
    assert _same([dict(sorted(b.items())) for b in batchwise.iterate(3)], [dict(sorted(b.items())) for b in expected])


def _states() -> tuple:
    numpy_state = np.random.get_state()
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2:], random.getstate()


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_neither_used_nor_moved(image_folder: Path, workers: int) -> None:
    results = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = _states()
        loaders = [build_dataloader(d, 5, workers, shuffle=True) for d in (_photos(image_folder), _digits())]
        results.append([batch for loader in loaders for batch in loader])
        assert _states() == before
    assert _same(*results)


def test_augmentation_differs_from_sample_to_sample_and_from_step_to_step() -> None:
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(2000, 1, 1, 1)
    steps = [dict(type="RandomFlip"), dict(type="RandomFlip", direction="vertical")]
    dataset = MemoryDataset(images, np.zeros(2000), steps)
    corners = (next(iter(build_dataloader(dataset, 2000)))["img"][:, 0, 0, 0] * 255).round()
    counts = Counter(corners.tolist())
    assert counts.keys() == {0, 7, 56, 63}  # both flips, each half of the time, independently
    assert all(abs(count - 500) < 100 for count in counts.values())


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_without_shuffling_see_each_sample_once(world_size: int) -> None:
    dataset = _digits()
    seen = []
    for rank in range(world_size):
        loader = build_dataloader(dataset, 50, rank=rank, world_size=world_size)
        batches = list(loader)
        indices = torch.cat([batch["index"] for batch in batches]).tolist()
        assert indices == list(range(rank, 360, world_size)) and len(loader) == len(batches)
        seen += indices
    assert sorted(seen) == list(range(360))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_shuffling_ranks_have_equally_many_batches(world_size: int) -> None:
    dataset = _digits()
    loaders = [
        build_dataloader(dataset, 50, shuffle=True, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    seen = [torch.cat([b["index"] for b in loader.iterate(1)]).tolist() for loader in loaders]
    assert len({len(loader) for loader in loaders}) == 1
    assert sorted(index for indices in seen for index in indices) == list(range(360))


def test_more_ranks_than_samples(image_folder: Path) -> None:
    dataset = _photos(image_folder)
    lengths = [len(build_dataloader(dataset, 2, rank=rank, world_size=20)) for rank in range(20)]
    assert lengths == [1] * 12 + [0] * 8
    assert [len(list(build_dataloader(dataset, 2, shuffle=True, rank=r, world_size=30))) for r in (0, 29)] == [1, 1]


def test_drop_last() -> None:
    loader = build_dataloader(_digits(), 100, drop_last=True)
    assert len(loader) == 3 and [len(batch["img"]) for batch in loader] == [100] * 3


def test_extra_keys_and_unseen_steps(image_folder: Path) -> None:
    steps = [
        dict(type="Resize", size=(8, 8)),
        dict(type="Collect", keys=["img"], meta_keys=["filename", "ori_shape", "img_shape"]),
    ]
    dataset = build_dataset(dict(type="ImageFolder", data_prefix=str(image_folder), pipeline=steps))
    batch = next(iter(build_dataloader(dataset, 2)))
    assert batch["gt_label"].tolist() == [0, 0]  # whatever the pipeline collects
    assert batch["img_metas"][1] == {
        "filename": str(image_folder / "cat" / "1.jpg"),
        "ori_shape": (33, 40, 3),
        "img_shape": (8, 8, 3),
    }


def _break(image_folder: Path, *names: str) -> None:
    for name in names:
        (image_folder / name).write_bytes(b"\xff\xd8\xff\xe0 no JPEG")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops(image_folder: Path, workers: int) -> None:
    _break(image_folder, "dog/2.jpg")
    loader = build_dataloader(_photos(image_folder), 5, workers)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{image_folder}/dog/2.jpg: cannot read this image (12 bytes)")
    assert "Traceback" not in str(caught.value) and "on_error='skip'" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_left_out_and_counted(
    image_folder: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    _break(image_folder, "dog/2.jpg", "eel/0.jpg")
    loader = build_dataloader(_photos(image_folder, on_error="skip"), 5, workers)
    with caplog.at_level(logging.WARNING, logger="lbitcls"):
        batches = list(loader)
        assert _same(list(loader), batches)
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3, 4], [5, 7, 9], [10, 11]]
    assert all(len(b["img"]) == len(b["gt_label"]) == len(b["index"]) for b in batches)
    assert list(loader.skipped) == [6, 8] and "dog/2.jpg" in loader.skipped[6]
    assert [record.getMessage()[:46] for record in caplog.records] == [
        "Leaving out an unreadable image (1 so far): " + str(image_folder)[:2],
        "Leaving out an unreadable image (2 so far): " + str(image_folder)[:2],
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_corrupt_images(image_folder: Path, workers: int) -> None:
    _break(image_folder, *(f"dog/{number}.jpg" for number in range(4)))
    dataset = _photos(image_folder, on_error="skip")
    assert [b["index"].tolist() for b in build_dataloader(dataset, 4, workers)] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    loader = build_dataloader(dataset, 1, workers, shuffle=True)
    batches = list(loader)
    # Training expects len(loader) batches: other samples are substituted.
    assert len(batches) == len(loader) == 12
    counts = Counter(torch.cat([b["index"] for b in batches]).tolist())
    assert counts == {0: 1, 1: 1, 2: 1, 3: 1, 8: 5, 9: 1, 10: 1, 11: 1}
    assert sorted(loader.skipped) == [4, 5, 6, 7]


def test_nothing_but_corrupt_images(image_folder: Path) -> None:
    _break(image_folder, *(f"{name}/{number}.jpg" for name in ("cat", "dog", "eel") for number in range(4)))
    dataset = _photos(image_folder, on_error="skip")
    assert list(build_dataloader(dataset, 4)) == []
    with pytest.raises(DataError, match="none of the 12 images can be read; the first: .*jpg: cannot read"):
        list(build_dataloader(dataset, 4, shuffle=True))


def test_images_of_different_sizes(image_folder: Path) -> None:
    dataset = build_dataset(dict(type="ImageFolder", data_prefix=str(image_folder), pipeline=[]))
    with pytest.raises(DataError, match="differ in the shape of 'img'"):
        list(build_dataloader(dataset, 4, 1))


@pytest.mark.parametrize(("keys", "message"), [((0, 0), "samples_per_gpu"), ((4, -1), "workers_per_gpu")])
def test_wrong_counts(keys: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message} must be an integer from"):
        build_dataloader(_digits(), *keys)


def test_pinning_without_a_gpu_changes_nothing() -> None:
    loader = build_dataloader(_digits(), 100, pin_memory=True)
    assert isinstance(loader, Loader) and next(iter(loader))["img"].is_pinned() == torch.cuda.is_available()

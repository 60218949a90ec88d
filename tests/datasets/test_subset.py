"""`indices` and `exclude_indices`: a subset of a data set, in memory and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.utils.errors import ConfigError, DataError

FLIP = [dict(type="RandomFlip", flip_prob=0.5)]


def digits(**keys: Any) -> Any:
    return build_dataset(dict(type="Digits", split="test", pipeline=FLIP, **keys))


@pytest.mark.parametrize("indices", [range(3, 360, 7), list(range(3, 360, 7)), tuple(range(3, 360, 7))])
def test_it_has_the_samples_of_the_whole(indices: Any) -> None:
    whole, part = digits(), digits(indices=indices)
    assert len(part) == 51 and part.CLASSES == whole.CLASSES and part.labels.tolist() == whole.labels[3::7].tolist()
    assert part.describe(2) == whole.describe(17)
    assert torch.equal(part.info(2)["img"], whole.info(17)["img"])
    for position in (0, 2, -1):  # the augmentation is the same, too
        theirs = whole[range(3, 360, 7)[position]]
        assert torch.equal(part[position]["img"], theirs["img"]) and part[position]["gt_label"] == theirs["gt_label"]


def test_its_batches_are_its_samples() -> None:
    part = digits(indices=[5, 300, 7, 5])
    assert part.batchwise
    (batch,) = build_dataloader(part, 4)
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert torch.equal(batch["img"], torch.stack([part[i]["img"] for i in range(4)]))
    assert torch.equal(batch["img"][0], batch["img"][3]) and batch["gt_label"].tolist() == part.labels.tolist()


def test_files_that_cannot_be_read_are_left_out(image_folder: Path) -> None:
    config = dict(
        type="ImageFolder", data_prefix="photos", on_error="skip", pipeline=[dict(type="Resize", size=(8, 8))]
    )
    whole = build_dataset(config)
    last = len(whole) - 1
    Path(whole.describe(last)).write_bytes(b"no image")
    part = build_dataset(dict(config, indices=[0, last]))
    (batch,) = build_dataloader(part, 2)
    assert batch["index"].tolist() == [0] and not part.batchwise
    assert list(part.skipped) == [1] and part.describe(1) == whole.describe(last)


@pytest.mark.parametrize("indices", [[], range(0), "0:5", 5, [0.0, 1.0], [True], {0, 1}])
def test_what_is_no_list_of_positions(indices: Any) -> None:
    with pytest.raises(ConfigError, match="Digits: indices must be a list, tuple or range of positions from 0; got "):
        digits(indices=indices)


@pytest.mark.parametrize("indices", [[360], [-1, 3], range(361)])
def test_positions_that_are_not_there(indices: Any) -> None:
    with pytest.raises(DataError, match="indices must be positions from 0 to 359; got "):
        digits(indices=indices)


def test_held_out_samples_and_the_rest_are_the_whole() -> None:
    held_out = range(0, 360, 10)
    whole, part, rest = digits(), digits(indices=held_out), digits(exclude_indices=held_out)
    assert [rest.describe(i) for i in range(len(rest))] == [whole.describe(i) for i in range(360) if i % 10]
    assert {part.describe(i) for i in range(36)}.isdisjoint(rest.describe(i) for i in range(324))


def test_wrong_exclusions() -> None:
    with pytest.raises(ConfigError, match="indices and exclude_indices exclude each other"):
        digits(indices=[0], exclude_indices=[1])
    with pytest.raises(ConfigError, match="exclude_indices leaves none of its 360 samples"):
        digits(exclude_indices=range(360))
    with pytest.raises(ConfigError, match="exclude_indices must be a list, tuple or range"):
        digits(exclude_indices="0:5")
    with pytest.raises(DataError, match="exclude_indices must be positions from 0 to 359"):
        digits(exclude_indices=[360])

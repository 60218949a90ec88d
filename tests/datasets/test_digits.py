"""Digits bundled with the package."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest

from lbitcls.datasets import build_dataset
from lbitcls.utils.errors import ConfigError


def test_both_parts() -> None:
    train, test = (build_dataset(dict(type="Digits", split=split, pipeline=[])) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert np.bincount(test.labels).tolist() == [36] * 10 and train.labels.dtype == np.int64
    assert train.CLASSES == tuple("0123456789") and train.describe(3) == "Digits train[3]"
    sample = train[0]
    assert sample["img"].shape == (1, 8, 8) and sample["img"].max() == 1 and sample["gt_label"] == train.labels[0]
    # The figures in the docstring.
    assert abs(train.images.float().mean() / 255 - 0.305) < 1e-3
    assert abs(train.images.float().std() / 255 - 0.376) < 1e-3


def test_no_image_is_in_both_parts_and_all_are_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    ours = [
        np.round(build_dataset(dict(type="Digits", split=split)).images.numpy().astype(float) * 16 / 255)
        for split in ("train", "test")
    ]
    rows = sorted(map(tuple, np.concatenate(ours).reshape(-1, 64).astype(int).tolist()))
    assert rows == sorted(map(tuple, datasets.load_digits().data.astype(int).tolist()))


def test_the_file_is_made_as_its_readme_says() -> None:
    pytest.importorskip("sklearn")
    folder = files("lbitcls.datasets") / "data"
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    made: dict = {}
    exec(code.group(1), made)
    with (folder / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        assert (stored["images"] == made["digits"].images[made["order"]]).all()
        assert (stored["labels"] == made["digits"].target[made["order"]]).all()
    assert (folder / "digits.npz").stat().st_size <= 60_000


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({}, 1437),
        ({"train": True}, 1437),
        ({"train": False}, 360),
        ({"test_mode": True}, 360),
        ({"test_mode": False}, 1437),
        ({"split": "test", "train": False, "test_mode": True}, 360),
    ],
)
def test_the_ways_to_say_which_part(keys: dict, count: int) -> None:
    assert len(build_dataset(dict(type="Digits", **keys))) == count


def test_wrong_parts() -> None:
    with pytest.raises(ConfigError, match="split must be 'train' or 'test'; got 'val'"):
        build_dataset(dict(type="Digits", split="val"))
    with pytest.raises(ConfigError, match="split='train' and test_mode=True contradict"):
        build_dataset(dict(type="Digits", split="train", test_mode=True))

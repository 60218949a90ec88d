"""CIFAR from small files in the published format."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from lbitcls.datasets import build_dataset
from lbitcls.datasets.cifar import CIFAR10, CIFAR100
from lbitcls.utils.errors import DataError

ROWS = np.random.default_rng(0).integers(0, 256, (40, 3072), dtype=np.uint8)


def _small(folder: Path, monkeypatch: pytest.MonkeyPatch, hundred: bool = False) -> None:
    """Files of 40 training (20 for CIFAR-100) and 20 test images, and a reader that expects their MD5."""
    base = torchvision.datasets.CIFAR100 if hundred else torchvision.datasets.CIFAR10
    key, count = ("fine_labels", 100) if hundred else ("labels", 10)
    sums = {}

    def write(name: str, content: dict) -> list[str]:
        (folder / base.base_folder).mkdir(parents=True, exist_ok=True)
        data = pickle.dumps(content, protocol=2)
        (folder / base.base_folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
        return [name, sums[name]]

    train = ["train"] if hundred else ["data_batch_1", "data_batch_2"]
    part = {"data": ROWS[:20], key: [i % count for i in range(20)]}
    names = {base.meta["key"]: [f"class {i}" for i in range(count)]}

    class Reader(base):
        train_list = [write(name, part) for name in train]
        test_list = [write("test" if hundred else "test_batch", {**part, "data": ROWS[20:]})]
        meta = {**base.meta, "md5": write(base.meta["filename"], names)[1]}

    monkeypatch.setattr(CIFAR100 if hundred else CIFAR10, "_reader", Reader)


@pytest.mark.parametrize(
    ("where", "prefix"),
    [(".", None), ("data", None), ("data/cifar10", "cifar10"), (".", "cifar-10-batches-py")],
)
def test_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, prefix: str | None) -> None:
    _small(tmp_path / where, monkeypatch)
    config = dict(type="CIFAR10", **({"data_prefix": prefix} if prefix else {}))
    train, test = build_dataset(config, data_root=tmp_path), build_dataset(dict(config, split="test"), tmp_path)
    assert (len(train), len(test)) == (40, 20) and train.CLASSES == tuple(f"class {i}" for i in range(10))
    assert train.labels.tolist() == [i % 10 for i in range(20)] * 2
    assert torch.equal(test.images[3], torch.from_numpy(ROWS[23]).reshape(3, 32, 32))


def test_hundred_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small(tmp_path, monkeypatch, hundred=True)
    train = build_dataset(dict(type="CIFAR100", data_root=str(tmp_path)))
    assert len(train) == 20 and len(train.CLASSES) == 100 and train.labels.tolist() == list(range(20))


@pytest.mark.parametrize("prefix", [None, "cifar10"])
def test_published_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str | None) -> None:
    _small(tmp_path / "source", monkeypatch)
    folder = tmp_path / "sets" / (prefix or "")
    folder.mkdir(parents=True)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "source" / "cifar-10-batches-py", "cifar-10-batches-py")
    assert len(build_dataset(dict(type="CIFAR10", data_prefix=prefix), data_root=tmp_path / "sets")) == 40


def test_files_that_are_not_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"something else")
    with pytest.raises(DataError, match="CIFAR10: the files were found, but torchvision rejects them"):
        build_dataset(dict(type="CIFAR10"), data_root=tmp_path)


def test_missing_mentions_the_download() -> None:
    with pytest.raises(DataError, match=r"'cifar-10-batches-py'.*cifar-10-python\.tar\.gz.*download=True downloads it"):
        build_dataset(dict(type="CIFAR10"))


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _small(tmp_path / "away", monkeypatch)

    def download(self: torchvision.datasets.CIFAR10) -> None:
        (tmp_path / "away" / self.base_folder).rename(Path(self.root) / self.base_folder)

    monkeypatch.setattr(CIFAR10._reader, "download", download)
    assert len(build_dataset(dict(type="CIFAR10", download=True), data_root=tmp_path / "new")) == 40

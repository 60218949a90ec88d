"""Ants and bees: where they are found, what is left out, the download's checksum."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lbitcls.datasets import build_dataset
from lbitcls.utils.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LBITCLS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write(root: Path, name: str = "hymenoptera_data") -> Path:
    """Create a folder in the data set's layout, 2 images per class and split, and the image included by mistake."""
    for split in ("train", "val"):
        for kind in ("ants", "bees"):
            folder = root / name / split / kind
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (12, 10), (40 * i, 0, 0)).save(folder / f"{i}.jpg")
    Image.new("P", (5, 5)).save(root / name / "train" / "ants" / "imageNotFound.gif")
    return root / name


def dataset(**keys: Any) -> Any:
    return build_dataset(dict(type="Hymenoptera", pipeline=[], **keys))


@pytest.mark.parametrize("name", ["hymenoptera_data", "hymenoptera_256"])
def test_folder_and_archive(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "root", name)
    for _ in range(2):
        train = dataset(data_root=str(tmp_path / "root"))
        assert train.CLASSES == ("ants", "bees") and train.labels.tolist() == [0, 0, 1, 1]
        assert not any(train.describe(i).endswith(".gif") for i in range(len(train)))
        assert train[3]["img"].shape == (3, 10, 12) and train[3]["gt_label"] == 1
        assert "/val/" in dataset(split="val", data_root=str(tmp_path / "root")).describe(0)
        if folder.exists():  # again, from an archive
            shutil.make_archive(str(folder), "zip", folder.parent, folder.name)
            shutil.rmtree(folder)


def test_its_own_place(tmp_path: Path) -> None:
    write(tmp_path, "insects")
    assert len(dataset(data_prefix="insects", test_mode=True)) == 4


def test_it_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found neither 'hymenoptera_data/train'.*hymenoptera_256 is accepted too"):
        dataset()


@pytest.mark.parametrize("keys", [dict(split="test"), dict(split="train", test_mode=True)])
def test_wrong_splits(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="split must be 'train' or 'val'"):
        dataset(**keys)


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def download(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        asked.append(hash_prefix)
        folder = write(tmp_path / "made")
        shutil.move(shutil.make_archive(str(folder), "zip", folder.parent, folder.name), dst)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert len(dataset(download=True, data_root=str(tmp_path / "root"))) == 4
    assert asked == ["fbc41b31d544714d18dd1230b1e2b455e1557766e13e67f9f5a7a23af7c02209"]


def test_download_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(DataError, match="the download of https.*failed.*Without a network, put a copy of the archive"):
        dataset(download=True)


def test_the_real_ones(shared_data: Path) -> None:
    sizes = [len(dataset(split=split, data_root=str(shared_data))) for split in ("train", "val")]
    assert sizes == [244, 153]

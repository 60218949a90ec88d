"""MNIST and FashionMNIST from idx files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lbitcls.datasets import build_dataset
from lbitcls.datasets.mnist import MNIST, read_idx
from lbitcls.utils.errors import DataError


def _idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def _write(folder: Path, part: str, count: int, zipped: bool) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
        content = _idx(array)
        path = folder / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)
    return images


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("where", "prefix"),
    [("sets/{}/raw", None), ("data/{}/raw", None), ("sets/my/mnist", "my/mnist"), ("sets/my/{}/raw", "my")],
)
@pytest.mark.parametrize("kind", ["MNIST", "FashionMNIST"])
def test_layouts(tmp_path: Path, kind: str, where: str, prefix: str | None, zipped: bool) -> None:
    folder = tmp_path / where.format(kind)
    images = _write(folder, "train", 30, zipped)
    _write(folder, "t10k", 20, zipped)
    config = dict(type=kind, **({"data_prefix": prefix} if prefix else {}))
    train = build_dataset(config, data_root="sets")
    assert len(train) == 30 and len(build_dataset(dict(config, test_mode=True), data_root="sets")) == 20
    assert torch.equal((train[7]["img"][0] * 255).round().to(torch.uint8), torch.from_numpy(images[7]))
    assert train.labels.tolist() == [i % 10 for i in range(30)] and len(train.CLASSES) == 10
    assert train.describe(7) == f"{kind} train[7]"


def test_corrupt_files(tmp_path: Path) -> None:
    good = _idx(np.zeros((3, 28, 28)))
    for name, content in {
        "short": good[:-1],
        "long": good + b"x",
        "empty": b"",
        "text": b"hello, this is text",
        "floats": bytes((0, 0, 13)) + good[3:],
        "cut.gz": gzip.compress(good)[:-9],
        "no.gz": good,
        "below0": bytes((0, 0, 8, 3)) + struct.pack(">3i", 0, 0, -(2**31)),
        "wide": bytes((0, 0, 8, 4)) + struct.pack(">4i", 0, 2**31 - 1, 2**31 - 1, 2**31 - 1),
        "bomb.gz": gzip.compress(bytes((0, 0, 8, 1)) + struct.pack(">i", 2**27) + bytes(2**27), 1),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: "):
            read_idx(tmp_path / name)


def test_images_and_labels_of_different_length(tmp_path: Path) -> None:
    _write(tmp_path / "MNIST", "train", 30, False)
    (tmp_path / "MNIST" / "train-labels-idx1-ubyte").write_bytes(_idx(np.zeros(29)))
    with pytest.raises(DataError, match=r"\(30, 28, 28\) images do not match \(29,\) labels"):
        build_dataset(dict(type="MNIST"), data_root=tmp_path)


def test_missing_mentions_the_download() -> None:
    with pytest.raises(DataError, match=r"MNIST: found neither 'MNIST'.*download=True downloads it"):
        build_dataset(dict(type="MNIST"))


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(root: Path, download: bool) -> None:
        assert download
        for part in ("train", "t10k"):
            _write(root / "MNIST" / "raw", part, 30, zipped=False)

    monkeypatch.setattr(MNIST, "_reader", staticmethod(reader))
    assert len(build_dataset(dict(type="MNIST", download=True), data_root=tmp_path / "new")) == 30
    assert (tmp_path / "new" / "MNIST" / "raw").is_dir()


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(root: Path, download: bool) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(MNIST, "_reader", staticmethod(reader))
    with pytest.raises(DataError, match=r"MNIST: the download into .*new failed: no network"):
        build_dataset(dict(type="MNIST", download=True), data_root=tmp_path / "new")


def test_real_data(shared_data: Path) -> None:
    train, test = (build_dataset(dict(type="MNIST", split=s), data_root=shared_data) for s in ("train", "test"))
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9] and test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(train.images.float().mean() / 255 - 0.1307) < 1e-4

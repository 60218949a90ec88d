"""torchvision's data sets by name: found, labeled, in order; nothing is downloaded unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.utils.errors import ConfigError, DataError

PIPELINE = [dict(type="v2.RandomHorizontalFlip"), dict(type="Normalize", mean=[0.5], std=[0.5])]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as `EuroSAT` expects it, whose labels torchvision keeps."""
    draw = np.random.default_rng(0)
    for name in ("forest", "river"):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path


def test_labels_and_classes_without_decoding(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.EuroSAT, "__getitem__", None)
    dataset = build_dataset(dict(type="TorchvisionDataset", name="EuroSAT"), photos)
    assert dataset.CLASSES == ("forest", "river") and dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_images_in_its_order_whatever_the_workers(photos: Path) -> None:
    dataset = build_dataset(dict(type="TorchvisionDataset", name="EuroSAT", pipeline=PIPELINE), photos)
    plain = torchvision.datasets.EuroSAT(photos)
    image = torch.from_numpy(np.array(plain[4][0])).permute(2, 0, 1)
    assert torch.equal(dataset.info(4)["img"], image) and dataset.describe(4) == "EuroSAT[4]"
    loaders = [build_dataloader(dataset, 2, workers, shuffle=True, seed=5) for workers in (0, 1)]
    one, other = ([batch["img"] for batch in loader] for loader in loaders)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_set_that_keeps_no_labels_is_read_once() -> None:
    options = dict(size=5, image_size=(3, 8, 8), num_classes=4)
    dataset = build_dataset(dict(type="TorchvisionDataset", name="FakeData", options=options))
    plain = torchvision.datasets.FakeData(**options)
    assert dataset.labels.tolist() == [int(plain[index][1]) for index in range(5)] and dataset.CLASSES is None


def test_missing_files_are_not_downloaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torchvision.datasets.EuroSAT, "download", lambda self: asked.append(self.root))
    monkeypatch.chdir(tmp_path)
    section = dict(type="TorchvisionDataset", name="EuroSAT", data_prefix="sat")
    with pytest.raises(DataError, match=r"EuroSAT finds no files. download=True downloads it. Searched: .*sat: "):
        build_dataset(section, tmp_path)
    assert not asked
    with pytest.raises(DataError):  # which our `download` does not bring
        build_dataset({**section, "download": True}, tmp_path)
    assert asked == [str(tmp_path / "sat")]


def test_a_damaged_image_is_named(photos: Path) -> None:
    (photos / "eurosat" / "2750" / "river" / "1.png").write_bytes(b"no image")
    dataset = build_dataset(dict(type="TorchvisionDataset", name="EuroSAT", pipeline=[]), photos)
    with pytest.raises(DataError, match=r"EuroSAT\[4\]: cannot read this image"):
        dataset[4]


def test_damaged_files_are_an_error_of_the_data(tmp_path: Path) -> None:
    """torchvision parses them with assertions."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"junk")
    with pytest.raises(DataError, match="MNIST finds no files"):
        build_dataset(dict(type="TorchvisionDataset", name="MNIST"), tmp_path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (dict(name="EuroSatt"), "torchvision has no data set 'EuroSatt'. Did you mean 'EuroSAT'"),
        (dict(name="VisionDataset"), "torchvision has no data set"),
        (dict(name="FakeData", options=dict(sizes=3)), "FakeData does not accept 'sizes'. Did you mean 'size'"),
        (dict(name="EuroSAT", options=dict(root="/x")), "EuroSAT does not accept 'root'"),
        (dict(name="Flowers102", options=dict(split="none")), "Flowers102: Unknown value 'none' for argument split"),
    ],
)
def test_wrong_sections(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_dataset(dict(type="TorchvisionDataset", **section))

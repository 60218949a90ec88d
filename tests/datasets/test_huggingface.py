"""Data sets of Hugging Face on disk: images and labels by position, and nothing else is read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.utils.errors import ConfigError, DataError, DependencyError

IMAGES = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets", reason="needs the extra datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee"]))
    rows = dict(image=[Image.fromarray(image) for image in IMAGES], label=[0, 1, 0, 1, 0, 1])
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(str(tmp_path / "set"))
    data.save_to_disk(str(tmp_path / "alone"))
    (tmp_path / "parquet").mkdir()
    data.to_parquet(str(tmp_path / "parquet" / "train-0.parquet"))
    return tmp_path


@pytest.mark.parametrize("prefix", ["set", "alone", "parquet", "parquet/train-0.parquet"])
def test_images_and_labels_by_position(saved: Path, prefix: str) -> None:
    dataset = build_dataset(dict(type="HuggingFaceDataset", data_prefix=prefix), saved)
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 1] and dataset.CLASSES == ("ant", "bee")
    for index in (5, 0):
        assert torch.equal(dataset.info(index)["img"], torch.from_numpy(IMAGES[index]).permute(2, 0, 1))


def test_splits_and_the_order_of_the_loader(saved: Path) -> None:
    assert len(build_dataset(dict(type="HuggingFaceDataset", data_prefix="set", split="test"), saved)) == 1
    dataset = build_dataset(dict(type="HuggingFaceDataset", data_prefix="set"), saved)
    loaders = [build_dataloader(dataset, 2, workers, shuffle=True, seed=5) for workers in (0, 1)]
    one, other = ([batch["img"] for batch in loader] for loader in loaders)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_row_that_names_a_file_opens_nothing(saved: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Image.fromarray(IMAGES[0]).save(saved / "outside.png")
    rows = {"image": [{"bytes": None, "path": str(saved / "outside.png")}], "label": [0]}
    pq.write_table(pa.table(rows), saved / "named.parquet")
    dataset = build_dataset(dict(type="HuggingFaceDataset", data_prefix="named.parquet"), saved)
    with pytest.raises(DataError, match=r"named.parquet\[0\]: cannot read .* names a file instead"):
        dataset.info(0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(split="tset"), ConfigError, "has no split 'tset'. Did you mean 'test'"),
        (dict(label="labels"), ConfigError, "has no column 'labels'. Did you mean 'label'"),
        (dict(data_prefix="none"), DataError, "found neither 'none'.*save_to_disk"),
        (dict(data_prefix="."), DataError, "cannot be read, as what save_to_disk wrote"),
    ],
)
def test_what_is_not_there(saved: Path, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        build_dataset({**dict(type="HuggingFaceDataset", data_prefix="set"), **options}, saved)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DependencyError, match=r"HuggingFaceDataset needs the package datasets.*lbitcls\[datasets\]"):
        build_dataset(dict(type="HuggingFaceDataset", data_prefix="x"))

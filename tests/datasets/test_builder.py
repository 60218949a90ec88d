"""build_dataset, and a custom data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lbitcls.datasets
from lbitcls.datasets import build_dataset
from lbitcls.datasets.base import MemoryDataset
from lbitcls.registry import DATASETS
from lbitcls.utils.errors import ConfigError, DataError


def test_the_configs_root_comes_first(image_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "photos" / "ape"
    other.mkdir(parents=True)
    (other / "1.jpg").write_bytes((image_folder / "cat" / "1.jpg").read_bytes())
    config = dict(type="ImageFolder", data_prefix="photos")
    assert build_dataset(config, data_root=[None, "other"]).CLASSES == ("ape",)
    assert build_dataset(dict(config, data_root="."), data_root="other").CLASSES == ("cat", "dog", "eel")
    assert build_dataset(dict(config, data_root="nowhere"), data_root="other").CLASSES == ("ape",)
    assert config == dict(type="ImageFolder", data_prefix="photos")


@pytest.mark.parametrize("name", ["ImageNet", "ImageNetV1", "ImageFolder", "MNIST", "CIFAR10", "CIFAR100", "Digits"])
def test_a_wrong_key_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} does not accept 'pipelin'. Did you mean 'pipeline'"):
        build_dataset(dict(type=name, pipelin=[]))


def test_what_is_no_data_set() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'ImageNet'"):
        build_dataset(dict(type="ImagNet"))
    with pytest.raises(ConfigError, match="a data set must be dict"):
        build_dataset({"data_prefix": "x"})
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'skip'; got 'ignore'"):
        build_dataset(dict(type="ImageFolder", data_prefix=_one_image(), on_error="ignore"))


def _one_image() -> str:
    from PIL import Image

    folder = Path("one", "class")
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return "one"


def test_ones_own() -> None:
    @DATASETS.register_module()
    class Stripes(MemoryDataset):
        def __init__(self, pipeline: Any, count: int) -> None:
            images = torch.zeros(count, 3, 4, 4, dtype=torch.uint8)
            super().__init__(images, np.arange(count) % 2, pipeline, ["plain", "striped"])

    try:
        dataset = build_dataset(dict(type="Stripes", count=5, pipeline=[]), data_root="anywhere")
        assert len(dataset) == 5 and dataset.CLASSES == ("plain", "striped")
        assert dataset.describe(2) == "Stripes[2]"
        with pytest.raises(DataError, match="Stripes has no images"):
            build_dataset(dict(type="Stripes", count=0, pipeline=[]))
    finally:
        del DATASETS.module_dict["Stripes"]


def test_public_names() -> None:
    for name in lbitcls.datasets.__all__:
        assert callable(getattr(lbitcls.datasets, name))
    with pytest.raises(AttributeError, match="has no attribute 'build_dataste'"):
        _ = lbitcls.datasets.build_dataste

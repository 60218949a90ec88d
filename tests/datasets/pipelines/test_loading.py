"""LoadImageFromFile: the accepted forms of a sample."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.datasets.pipelines import Compose
from lbitcls.datasets.pipelines.transform import log_once
from lbitcls.utils.errors import ConfigError, DataError

LOAD = dict(type="LoadImageFromFile")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "test.png")
    return tmp_path / "test.png"


@pytest.mark.parametrize("steps", [[LOAD], []])
def test_a_file_in_every_way(file: Path, steps: list) -> None:
    pipeline = Compose(steps)
    array = np.asarray(Image.open(file))
    samples = [
        str(file),
        file,
        dict(img_info=dict(filename="test.png"), img_prefix=None),
        dict(img_info=dict(filename="test.png"), img_prefix=str(file.parent)),
        dict(img_info=dict(filename=str(file))),
        dict(img=array),
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        Image.open(file),
    ]
    for sample in samples:
        results = pipeline(sample)
        assert np.array_equal(results["img"].permute(1, 2, 0).numpy(), array)
        assert results["ori_shape"] == (20, 30, 3)
    assert pipeline(samples[3])["filename"] == str(file)
    assert "ori_shape" not in samples[5]


def test_color_types(file: Path) -> None:
    gray = np.zeros((8, 8), np.uint8)
    for color_type, of_color, of_gray in (("color", 3, 3), ("grayscale", 1, 1), ("unchanged", 3, 1)):
        pipeline = Compose([dict(LOAD, color_type=color_type)])
        assert pipeline(file)["img"].size(0) == of_color
        assert pipeline(gray)["img"].size(0) == of_gray
    with pytest.raises(ConfigError, match="color_type must be one of 'color', .* got 'colour'. Did you mean 'color'"):
        Compose([dict(LOAD, color_type="colour")])


def test_older_keys(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="lbitcls"):
        step = dict(LOAD, to_float32=True, imdecode_backend="pillow", file_client_args=dict(backend="disk"))
        assert Compose([step])(file)["img"].dtype == torch.uint8
        Compose([step])
    assert len(caplog.records) == 1 and "imdecode_backend" in caplog.text
    with pytest.raises(ConfigError, match="reads files from disk"):
        Compose([dict(LOAD, file_client_args=dict(backend="petrel"))])
    with pytest.raises(ConfigError, match="private storage.*LoadImageFromFile"):
        Compose([dict(type="LoadImageFromNori", nori_path="x")])


def test_what_is_no_sample() -> None:
    with pytest.raises(DataError, match="a sample must be a file name, an array.*got a dict with 'image'"):
        Compose([LOAD])(dict(image=1))
    with pytest.raises(DataError, match="a sample must be a file name, an array, an image or a dict; got int"):
        Compose([LOAD])(7)

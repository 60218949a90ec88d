"""Unreadable files in a data set, wherever a folder of images is used."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.datasets.listing import images_of
from lbitcls.datasets.pipelines.pillow import UnreadableImage, read_with_pillow
from lbitcls.starter.survey import survey_folder
from lbitcls.utils.errors import DataError

pytestmark = pytest.mark.timeout(120)
BROKEN = ("flipped.png", "head.png", "huge.jpg", "pipe.jpg", "device.jpg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / kind / f"{number}.png")
    content = bytearray((tmp_path / "cat" / "0.png").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "cat" / "flipped.png").write_bytes(content)
    (tmp_path / "cat" / "head.png").write_bytes(content[:40])
    Image.new("RGB", (16, 16)).save(tmp_path / "cat" / "huge.jpg")
    content = bytearray((tmp_path / "cat" / "huge.jpg").read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = bytes([0xFF, 0xDC] * 2)
    (tmp_path / "cat" / "huge.jpg").write_bytes(content)
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "device.jpg").symlink_to("/dev/zero")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_leaves_them_out(workers: int, photos: Path) -> None:
    dataset = build_dataset(dict(type="ImageFolder", data_prefix=str(photos), pipeline=[], on_error="skip"))
    batches = list(build_dataloader(dataset, 4, workers))
    assert sum(len(batch["img"]) for batch in batches) == 8
    assert sorted(Path(dataset.describe(index)).name for index in dataset.skipped) == sorted(BROKEN)
    for name in BROKEN:
        assert any(f"{name}: " in message for message in dataset.skipped.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_names_them(workers: int, photos: Path) -> None:
    dataset = build_dataset(dict(type="ImageFolder", data_prefix=str(photos), pipeline=[]))
    with pytest.raises(DataError, match="cat/.*on_error='skip'"):
        list(build_dataloader(dataset, 4, workers))


def test_a_survey_names_them(photos: Path) -> None:
    survey = survey_folder(photos, workers=2)
    assert sorted(Path(image.name).name for image in survey.unreadable()) == sorted(BROKEN)
    assert sum(survey.counts("train").values()) == 8


def test_inference_names_them(photos: Path) -> None:
    failed = []
    for path in images_of(photos):
        try:
            read_with_pillow(path, "rgb")
        except UnreadableImage as error:
            assert str(error).startswith(path)
            failed.append(Path(path).name)
    assert sorted(failed) == sorted(BROKEN)

"""WebDataset's shards: indexed, read by position, in the loader's order, and damaged ones refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.utils.errors import ConfigError, DataError

IMAGES = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)


def png(number: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(IMAGES[number]).save(data, "PNG")
    return data.getvalue()


def write(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard in range(2):
        files: dict[str, bytes] = {}
        for number in range(3 * shard, 3 * shard + 3):
            files[f"x/{number:04}.png"] = png(number)
            files[f"x/{number:04}.cls"] = f"{number % 3}\n".encode()
            files[f"x/{number:04}.txt"] = b"a caption"
        write(tmp_path / "train" / f"part-{shard:02}.tar", files)
    return tmp_path


@pytest.mark.parametrize(
    "prefix", ["train/part-*.tar", "train/part-{00..01}.tar", ["train/part-00.tar", "train/*-01.tar"]]
)
def test_images_and_labels_by_position(shards: Path, prefix: Any) -> None:
    dataset = build_dataset(dict(type="WebDataset", data_prefix=prefix, classes=["a", "b", "c"]), shards)
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2] and dataset.CLASSES == ("a", "b", "c")
    for index in (5, 0, 3):
        assert torch.equal(dataset.info(index)["img"], torch.from_numpy(IMAGES[index]).permute(2, 0, 1))
    assert dataset.describe(4) == f"{shards}/train/part-01.tar/x/0004.png"


def test_the_order_is_the_loaders_whatever_the_workers(shards: Path) -> None:
    section = dict(type="WebDataset", data_prefix="train/*.tar", pipeline=[dict(type="v2.RandomRotation", degrees=9)])
    dataset = build_dataset(section, shards)
    loaders = [build_dataloader(dataset, 2, workers, shuffle=True, seed=5) for workers in (0, 1)]
    one, other = ([(batch["img"], batch["gt_label"]) for batch in loader] for loader in loaders)
    assert all(torch.equal(a, b) for first, second in zip(one, other, strict=True) for a, b in zip(first, second))
    assert sorted(int(label) for _, labels in one for label in labels) == [0, 0, 1, 1, 2, 2]


def test_labels_in_json(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"1.png": png(0), "1.json": b'{"class": 4}'})
    dataset = build_dataset(dict(type="WebDataset", data_prefix="a.tar", label_key="class"), tmp_path)
    assert dataset.labels.tolist() == [4]


BROKEN: list[tuple[dict[str, bytes], dict[str, Any], str]] = [
    ({"1.png": png(0)}, {}, "a.tar: 1.png has no label; expected a file of its name with .cls"),
    ({"1.png": png(0), "1.cls": b"-1"}, {}, "a.tar: 1.cls: a label must be an integer ≥ 0; got '-1'"),
    ({"1.png": png(0), "1.cls": b"9" * 5000}, {}, "a label must be an integer"),
    (
        {"1.png": png(0), "1.json": b"[" * 100_000},
        {},
        "a.tar: 1.json contains no label; expected JSON with an integer under 'label'",
    ),
    ({"1.png": png(0), "1.cls": b"7"}, dict(classes=["a"]), "has the label 7; it must be below 1"),
    ({"readme.md": b""}, {}, "WebDataset has no images"),
]


@pytest.mark.parametrize(("files", "options", "message"), BROKEN)
def test_broken_shards(tmp_path: Path, files: dict[str, bytes], options: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=message):
        build_dataset(dict(type="WebDataset", data_prefix="a.tar", **options), tmp_path)


def test_compressed_and_damaged_files(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"1.png": png(0), "1.cls": b"0"}, "w:gz")
    (tmp_path / "b.tar").write_bytes(b"no tar file" * 100)
    for name in ("a.tar", "b.tar"):
        with pytest.raises(DataError, match="cannot be read as a shard, an uncompressed tar file"):
            build_dataset(dict(type="WebDataset", data_prefix=name), tmp_path)
    with pytest.raises(DataError, match="no file matches 'c-"):
        build_dataset(dict(type="WebDataset", data_prefix="c-*.tar"), tmp_path)


def test_a_damaged_image_is_named_or_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {"1.png": b"no image", "1.cls": b"0", "2.png": png(1), "2.cls": b"1"})
    section = dict(type="WebDataset", data_prefix="a.tar", pipeline=[])
    with pytest.raises(DataError, match=r"a.tar/1.png: cannot read this image"):
        build_dataset(section, tmp_path)[0]
    loader = build_dataloader(build_dataset({**section, "on_error": "skip"}, tmp_path), 2)
    assert [batch["gt_label"].tolist() for batch in loader] == [[1]]


@pytest.mark.parametrize("prefix", ["a-{0..1000000}.tar", "a-{5..1}.tar", "a**b.tar", "", [3]])
def test_wrong_patterns(prefix: Any) -> None:
    with pytest.raises(ConfigError, match="data_prefix must"):
        build_dataset(dict(type="WebDataset", data_prefix=prefix))

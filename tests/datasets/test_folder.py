"""Image folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.utils.errors import DataError

FIXED = [dict(type="Resize", size=(16, 16)), dict(type="Normalize", mean=[127.0] * 3, std=[64.0] * 3)]


def test_labels_follow_the_sorted_folders(image_folder: Path) -> None:
    nested = image_folder / "dog" / "deeper"
    nested.mkdir()
    (image_folder / "dog" / "0.jpg").rename(nested / "0.JPG")
    (image_folder / "dog" / "notes.txt").write_text("no image")
    (image_folder / "dog" / "._3.jpg").write_text("what some systems leave")
    (image_folder / ".hidden").mkdir()
    dataset = build_dataset(dict(type="ImageFolder", data_prefix="photos", pipeline=FIXED))
    assert dataset.CLASSES == ("cat", "dog", "eel")
    assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert Path(dataset.describe(7)).resolve() == nested / "0.JPG"
    assert dataset[0]["img"].shape == (3, 16, 16) and dataset[-1]["gt_label"] == 2
    with pytest.raises(IndexError):
        dataset[12]


def test_classes_give_the_order(image_folder: Path) -> None:
    config = dict(type="ImageFolder", data_prefix=str(image_folder), pipeline=FIXED)
    dataset = build_dataset(dict(config, classes=["eel", "ant", "dog", "cat"]))
    assert dataset.labels.tolist() == [3] * 4 + [2] * 4 + [0] * 4
    (image_folder.parent / "names.txt").write_text("dog\ncat\neel\n")
    assert build_dataset(dict(config, classes="names.txt")).CLASSES == ("dog", "cat", "eel")
    with pytest.raises(DataError, match=r"photos/dog matches no name in classes. Did you mean 'dogs'\?"):
        build_dataset(dict(config, classes=["cat", "dogs", "eel"]))


def test_a_gif_among_the_photos(image_folder: Path) -> None:
    with Image.open(image_folder / "cat" / "3.jpg") as image:
        image.save(image_folder / "cat" / "4.gif", save_all=True, append_images=[image.rotate(90)] * 3)
    dataset = build_dataset(dict(type="ImageFolder", data_prefix="photos", pipeline=FIXED))
    assert dataset.describe(4).endswith("4.gif") and dataset[4]["gt_label"] == 0
    assert (dataset[4]["img"] - dataset[3]["img"]).abs().mean() < 0.1


def test_folders_that_are_wrong(image_folder: Path) -> None:
    (image_folder / "fox").mkdir()
    with pytest.raises(DataError, match="photos/fox has no images"):
        build_dataset(dict(type="ImageFolder", data_prefix="photos"))
    with pytest.raises(DataError, match="fox has no class folders"):
        build_dataset(dict(type="ImageFolder", data_prefix="photos/fox"))


def test_in_memory_is_the_same_as_from_files(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / "small" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    steps = [dict(type="RandomCrop", size=12, padding=2), dict(type="RandomFlip"), *FIXED]
    config = dict(type="ImageFolder", data_prefix="small", pipeline=steps)
    files, memory = build_dataset(config), build_dataset(dict(config, in_memory=True))
    assert memory.batchwise and not files.batchwise and memory.describe(0) == files.describe(0)
    for one, other in zip(build_dataloader(files, 4), build_dataloader(memory, 4), strict=True):
        assert torch.equal(one["img"], other["img"]) and torch.equal(one["gt_label"], other["gt_label"])


def test_in_memory_needs_one_size_and_leaves_out_what_it_may(image_folder: Path) -> None:
    config = dict(type="ImageFolder", data_prefix="photos", pipeline=FIXED, in_memory=True)
    with pytest.raises(DataError, match=r"needs readable images of one size; found \(3, 30, 40\)"):
        build_dataset(config)
    for name in ("cat", "dog", "eel"):
        for number in (1, 2, 3):
            (image_folder / name / f"{number}.jpg").unlink()
    for name in ("dog", "eel"):
        (image_folder / name / "0.jpg").write_bytes((image_folder / "cat" / "0.jpg").read_bytes())
    (image_folder / "dog" / "1.jpg").write_text("broken")
    with pytest.raises(DataError, match=r"dog/1\.jpg: cannot read this image"):
        build_dataset(config)
    dataset = build_dataset(dict(config, on_error="skip"))
    assert len(dataset) == 3 and dataset.labels.tolist() == [0, 1, 2] and list(dataset.skipped) == [2]


def test_real_photos_from_their_archive(shared_data: Path) -> None:
    config = dict(type="ImageFolder", data_prefix="hymenoptera_256/train", pipeline=FIXED)
    dataset = build_dataset(config, data_root=shared_data)
    assert len(dataset) == 244 and np.bincount(dataset.labels).tolist() == [123, 121]
    assert dataset.CLASSES == ("ants", "bees")
    batches = list(build_dataloader(dataset, 64, 2))
    assert [len(batch["img"]) for batch in batches] == [64, 64, 64, 52]


@pytest.mark.slow
def test_real_cifar_as_jpeg_files(shared_data: Path) -> None:
    config = dict(type="ImageFolder", data_prefix="cifar10_jpg/test", in_memory=True)
    dataset = build_dataset(config, data_root=shared_data)
    assert dataset.images.shape == (10_000, 3, 32, 32) and np.bincount(dataset.labels).tolist() == [1000] * 10

"""ImageNet: class names, class folders, a flat folder, list files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lbitcls.datasets import ImageNet, build_dataset
from lbitcls.utils.errors import ConfigError, DataError


def test_class_names() -> None:
    assert len(ImageNet.CLASSES) == 1000
    assert ImageNet.CLASSES[:2] == ("tench", "goldfish") and ImageNet.CLASSES[999] == "toilet tissue"


def _listed(tmp_path: Path, text: str, **keys: object) -> object:
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    config = dict(type="ImageNetV1", data_prefix="photos", ann_file="list.txt", pipeline=[])
    return build_dataset({**config, **keys})


def test_list_file(image_folder: Path) -> None:
    (image_folder / "cat" / "0.jpg").rename(image_folder / "cat" / "a b.jpg")
    absolute = image_folder / "eel" / "2.jpg"
    dataset = _listed(image_folder.parent, f"dog/1.jpg 999\n\ncat/a b.jpg 0\r\n{absolute} 7\n")
    assert dataset.labels.tolist() == [999, 0, 7] and dataset.CLASSES == ImageNet.CLASSES
    assert Path(dataset.describe(1)).resolve() == image_folder / "cat" / "a b.jpg"
    assert dataset.describe(2) == str(absolute)
    assert [dataset[i]["gt_label"].item() for i in range(3)] == [999, 0, 7]


def test_list_file_inside_the_folder_and_classes_of_ones_own(image_folder: Path) -> None:
    (image_folder / "list.txt").write_text("dog/1.jpg 1\n")
    config = dict(type="ImageNet", data_prefix="photos", ann_file="list.txt", classes=["cat", "dog"])
    assert build_dataset(config).CLASSES == ("cat", "dog")


@pytest.mark.parametrize("line", ["dog/1.jpg", "dog/1.jpg x", "dog/1.jpg -1", "7", "dog/1.jpg 1.0", "dog/1.jpg ²"])
def test_bad_lines_are_named(image_folder: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"list\.txt:3: expected 'path label'"):
        _listed(image_folder.parent, f"cat/0.jpg 0\n\n{line}\n")


def test_labels_that_are_too_large_and_empty_lists(image_folder: Path) -> None:
    with pytest.raises(DataError, match=r"list\.txt:1: label 1000 must be below 1000"):
        _listed(image_folder.parent, "cat/0.jpg 1000\n")
    with pytest.raises(DataError, match=r"list\.txt:1: label 2 must be below 2"):
        _listed(image_folder.parent, "cat/0.jpg 2\n", classes=["cat", "dog"])
    with pytest.raises(DataError, match="lists no images"):
        _listed(image_folder.parent, "\n")
    with pytest.raises(ConfigError, match="ImageNetV1 needs ann_file"):
        build_dataset(dict(type="ImageNetV1", data_prefix="photos"))
    with pytest.raises(ConfigError, match="Did you mean 'ann_file'"):
        build_dataset(dict(type="ImageNetV1", data_prefix="photos", annfile="x"))


def test_a_listed_file_that_is_not_there(image_folder: Path) -> None:
    dataset = _listed(image_folder.parent, "cat/nine.jpg 0\n")
    with pytest.raises(DataError, match=r"photos/cat/nine\.jpg: no such file"):
        dataset[0]


def test_class_folders(image_folder: Path) -> None:
    config = dict(type="ImageNet", data_prefix="photos", test_mode=True)
    assert build_dataset(config).CLASSES == ("cat", "dog", "eel")
    assert build_dataset(dict(config, classes=["x", "y", "z"])).CLASSES == ("x", "y", "z")
    with pytest.raises(DataError, match="3 class folders, but classes has 2 names"):
        build_dataset(dict(config, classes=["x", "y"]))


def test_flat_folder(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for name in ("b", "a", "c"):
        Image.new("RGB", (8, 8)).save(tmp_path / "flat" / f"{name}.png")
    dataset = build_dataset(dict(type="ImageNet", data_prefix="flat", classes=["x", "y", "z"]))
    assert dataset.labels.tolist() == [0, 1, 2] and dataset.describe(0).endswith("a.png")
    with pytest.raises(DataError, match="no class folders and 3 images; expected class folders, or one image for each"):
        build_dataset(dict(type="ImageNet", data_prefix="flat"))


def test_thousand_real_images(shared_data: Path) -> None:
    steps = [dict(type="Resize", size=(256, -1)), dict(type="CenterCrop", crop_size=224)]
    dataset = build_dataset(dict(type="ImageNet", data_prefix="imagenet1000_256", pipeline=steps), shared_data)
    assert len(dataset) == 1000 and dataset.labels.tolist() == list(range(1000))
    assert dataset.CLASSES[0] == "tench" and "tench" in dataset.describe(0)
    assert dataset[500]["img"].shape == (3, 224, 224)

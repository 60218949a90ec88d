"""Data sets whose labels mean something else than in training."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lbitcls.apis import test_classifier as classify
from lbitcls.apis import train_classifier
from lbitcls.assembly.classes import check_names
from lbitcls.datasets.names import imagenet_classes
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError

QUANT = dict(type="mTransformerV2", quan_policy=dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4)))
LOGGER = logging.getLogger("test_classes")


def folders(root: Path, names: str) -> dict[str, Any]:
    """An `ImageFolder` with a class for each letter of `names`."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8), 40 * number + i, np.uint8)).save(root / name / f"{i}.png")
    steps = [dict(type="LoadImageFromFile", color_type="grayscale"), dict(type="Normalize", mean=[80.0], std=[60.0])]
    return dict(type="ImageFolder", data_prefix=str(root), pipeline=steps)


@pytest.fixture
def letters(make_config: Any, tmp_path: Path) -> Any:
    """A config that trains on the classes a, b, c."""
    cfg = make_config(total_epochs=1)
    train = folders(tmp_path / "train", "abc")
    cfg.data = dict(samples_per_gpu=4, train=train, val=folders(tmp_path / "val", "abc"))
    return cfg


def test_validation_set_without_a_class(letters: Any, tmp_path: Path) -> None:
    letters.data.val = folders(tmp_path / "less", "ac")
    with pytest.raises(DataError, match=r"data\.val .* as data\.train, .* 2 classes for 3, it lacks 'b'\."):
        train_classifier(letters)


def test_test_set_is_compared_with_the_checkpoint(letters: Any, tmp_path: Path) -> None:
    train_classifier(letters)
    best = f"{letters.work_dir}/best_top-1.pth"
    assert classify(letters, best)["top-1"] >= 0
    letters.data.test = folders(tmp_path / "more", "bcd")
    with pytest.raises(DataError, match=r"data\.test .* the checkpoint .*best_top-1\.pth.* lacks 'a', it adds 'd'\."):
        classify(letters, best)
    letters.data.test = dict(letters.data.val, classes=["a", "c", "b"])
    with pytest.raises(DataError, match="label 1 is 'c' for 'b'"):
        classify(letters, best)


def test_label_that_is_no_class(letters: Any, tmp_path: Path) -> None:
    letters.model.head.num_classes = 3
    letters.data.val = folders(tmp_path / "more", "abcd")
    with pytest.raises(ConfigError, match=r"3 classes .*data\.val has labels up to 3"):
        train_classifier(letters)


@pytest.mark.parametrize(
    ("trained", "now", "level"),
    [
        (("a", "b"), ("a", "b"), None),
        (None, ("a", "b"), None),
        (("a", "b"), None, None),
        (("a", "b"), ("ant", "bee"), "INFO"),
        (imagenet_classes(), tuple(f"n{i:08}" for i in range(1000)), "INFO"),
        (imagenet_classes(), ("a", "b"), "WARNING"),
        (("a", "b"), imagenet_classes(), "WARNING"),
    ],
)
def test_other_names_are_no_error(trained: Any, now: Any, level: str | None, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        check_names(trained, "data.train", SimpleNamespace(CLASSES=now), "val", LOGGER)
    assert [record.levelname for record in caplog.records] == ([level] if level else [])


@pytest.mark.parametrize(
    ("trained", "now"),
    [(("a", "b"), ("x", "y", "z")), (("a", "b"), ("b", "a")), (imagenet_classes(), imagenet_classes()[:999])],
)
def test_other_classes_are(trained: Any, now: Any) -> None:
    with pytest.raises(DataError, match=r"data\.val does not number the classes as data\.train"):
        check_names(trained, "data.train", SimpleNamespace(CLASSES=now), "val", LOGGER)


def test_float_checkpoint_and_quantized_config(make_config: Any) -> None:
    plain = make_config("plain", total_epochs=1)
    quantized = make_config("quantized", total_epochs=1, quant_transformer=QUANT)
    for cfg in (plain, quantized):
        train_classifier(cfg)
    with pytest.raises(CheckpointError, match="it has float weights, but the config's quant_transformer quantizes"):
        classify(quantized, f"{plain.work_dir}/latest.pth")
    with pytest.raises(CheckpointError, match="it is from a quantized model, but the config has no quant_transformer"):
        classify(plain, f"{quantized.work_dir}/latest.pth")

"""Preprocessing of published weights agrees with torchvision's own."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_weight

from lbitcls.datasets.pipelines import Compose
from lbitcls.datasets.pipelines.pretrained import PretrainedPreprocessing, written_out
from lbitcls.utils.errors import ConfigError

V1 = "torchvision://mobilenet_v2.IMAGENET1K_V1"
NAMES = [
    (V1, "MobileNet_V2_Weights.IMAGENET1K_V1"),
    ("torchvision://mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V2"),
    ("torchvision://efficientnet_b0", "EfficientNet_B0_Weights.IMAGENET1K_V1"),
]


@pytest.mark.parametrize(("name", "theirs"), NAMES)
def test_it_is_torchvisions(name: str, theirs: str) -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 12), (300, 400), mode="bilinear")[0]
    img = (smooth * 255).to(torch.uint8)
    expected = get_weight(theirs).transforms()(img)
    got = Compose([dict(type="PretrainedPreprocessing", weights=name)])(img)["img"]
    assert got.shape == expected.shape == (3, 224, 224)
    level = 1 / 255 / 0.224  # one of the 256 levels after normalization
    assert (got - expected).abs().max() < 1.01 * level  # it rounds once, resizing of bytes after each direction
    assert (got - expected).abs().mean() < 0.2 * level


def test_a_pipeline_holds_its_steps() -> None:
    pipeline = Compose([dict(type="PretrainedPreprocessing", weights=V1)])
    names = [type(step).__name__ for step in pipeline.transforms]
    assert names == ["LoadImageFromFile", "Resize", "CenterCrop", "Normalize"]
    assert pipeline.batchwise and not pipeline.random_steps
    img = torch.randint(0, 256, (3, 260, 300), dtype=torch.uint8)
    step = PretrainedPreprocessing(V1)
    assert torch.equal(step({"img": img})["img"], pipeline(img)["img"])
    assert step.crop_size == (224, 224)


def test_without_the_crop() -> None:
    steps = [dict(type="RandomResizedCrop", size=64), dict(type="PretrainedPreprocessing", weights=V1, crop=False)]
    pipeline = Compose(steps)
    assert [type(step).__name__ for step in pipeline.transforms[1:]] == ["RandomResizedCrop", "Normalize"]
    assert [type(step).__name__ for step in pipeline.random_steps] == ["RandomResizedCrop"]


@pytest.mark.parametrize("name", [name for name, _ in NAMES])
def test_written_out_it_is_the_same(name: str) -> None:
    pipeline = [dict(type="LoadImageFromFile"), dict(type="PretrainedPreprocessing", weights=name), lambda r: r]
    steps = written_out(pipeline)
    assert [step["type"] for step in steps[:-1]] == ["LoadImageFromFile", "Resize", "CenterCrop", "Normalize"]
    assert steps[-1] is pipeline[-1] and written_out(steps) == steps
    img = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    assert torch.equal(Compose(steps)(img)["img"], Compose(pipeline)(img)["img"])


def test_which_steps_are_random() -> None:
    steps = [
        dict(type="v2.Resize", size=8),
        dict(type="Pad", padding=1),
        dict(type="v2.RandomRotation", degrees=5),
        dict(type="ColorJitter", hue=0.1),
        dict(type="RandomFlip"),
        lambda results: results,
        dict(type="ImageToTensor", keys=["img"]),
        dict(type="Collect", keys=["img", "gt_label"]),
    ]
    pipeline = Compose(steps)
    found = [pipeline.transforms.index(step) - 1 for step in pipeline.random_steps]  # without LoadImageFromFile
    assert found == [2, 3, 4, 5]


@pytest.mark.parametrize("weights", ["weights.pth", None, "torchvision://mobilenet_v9"])
def test_wrong_weights(weights: str) -> None:
    with pytest.raises(ConfigError):
        PretrainedPreprocessing(weights)

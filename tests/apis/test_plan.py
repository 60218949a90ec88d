"""`lbitcls plan` of a backbone of one's own: the image's shape from the data or the model, or a word on --shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from lbitcls.models import build_classifier
from lbitcls.models.backbones.base import BaseBackbone
from lbitcls.registry import BACKBONES
from lbitcls.settings.sections import read_settings
from lbitcls.utils import Config
from lbitcls.utils.errors import ConfigError
from lbitcls.workflows.planning import image_shape, show_plan

pytestmark = pytest.mark.usefixtures("forget_registrations")
MEANS = {1: [0.3], 3: [0.3, 0.3, 0.3]}


class OwnNet(BaseBackbone):
    """As the tutorial writes it: nothing says what images it takes."""

    out_channels = (16,)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, 2, 1)

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return (self.conv(img).relu(),)


def config(channels: int, pipeline: list[Any], **keys: Any) -> Config:
    BACKBONES.register_module(module=OwnNet, force=True)
    return Config(
        dict(
            model=dict(
                type="ImageClassifier",
                backbone=dict(type="OwnNet", channels=channels),
                neck=dict(type="GlobalAveragePooling"),
                head=dict(type="LinearClsHead", num_classes=10, in_channels=16),
            ),
            data=dict(test=dict(type="ImageFolder", data_prefix="x", pipeline=pipeline, **keys)),
            quant_transformer=dict(
                type="ModelTransformer", quan_policy=dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
            ),
        )
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("says", ["mean", "color", "nothing"])
def test_channels(channels: int, says: str) -> None:
    steps: list[Any] = [dict(type="Resize", size=(8, 8))]
    if says == "mean" and channels in MEANS:
        steps.append(dict(type="Normalize", mean=MEANS[channels], std=MEANS[channels]))
    if says == "color" and channels in MEANS:
        steps.insert(0, dict(type="LoadImageFromFile", color_type="grayscale" if channels == 1 else "color"))
    rows = show_plan(config(channels, steps))
    assert [row.macs for row in rows if row.row.name == "backbone.conv"] == [16 * channels * 9 * 16]


def test_data_sets_of_gray_images() -> None:
    cfg = config(1, [])
    cfg.data.test = dict(type="Digits", split="test")
    assert image_shape(read_settings(cfg), build_classifier(cfg.model)) == (1, 8, 8)


def test_an_image_that_the_model_does_not_take(tmp_path: Path) -> None:
    cfg = config(1, [dict(type="Resize", size=8), dict(type="Normalize", mean=MEANS[3], std=MEANS[3])])
    with pytest.raises(ConfigError, match=r"does not accept an image of \(3, 8, 8\).*--shape C H W.*in_channels"):
        show_plan(cfg)
    assert show_plan(cfg, (1, 8, 8))

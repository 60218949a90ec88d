"""Modules whose parameters are gathered together, and the sections that do not go with them."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from lbitcls.core.sharding import blocks, find_modules
from lbitcls.models import build_classifier
from lbitcls.settings.sections import read_settings
from lbitcls.utils.errors import ConfigError


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    head = dict(type="LinearClsHead", num_classes=10, in_channels=512)
    backbone = dict(type="ResNet", depth=18)
    return build_classifier(
        dict(type="ImageClassifier", backbone=backbone, neck=dict(type="GlobalAveragePooling"), head=head)
    )


def test_the_blocks_of_a_backbone(resnet: nn.Module) -> None:
    assert blocks(resnet) == [f"backbone.layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


def test_modules_by_name_and_class(resnet: nn.Module) -> None:
    assert find_modules(resnet, ["backbone.layer2", "head"]) == ["backbone.layer2", "head"]
    assert find_modules(resnet, ["BasicBlock"]) == blocks(resnet)
    assert len(find_modules(resnet, ["_ConvNd"])) == 20  # a class finds those derived from it
    with pytest.raises(ConfigError, match=r"nor a class of modules, 'BasicBlok'. Did you mean 'BasicBlock'"):
        find_modules(resnet, ["BasicBlok"])


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (dict(compile=True), "compile"),
        (dict(channels_last=True), "channels_last"),
        (
            dict(quant_transformer=dict(type="mTransformerV2", quan_policy={}, fold_bn=True)),
            "quant_transformer.fold_bn",
        ),
        (dict(amp="fp16"), "float16, whose loss scale"),
        (dict(fp16=dict(loss_scale=512.0)), "float16, whose loss scale"),
        (dict(not_finite="rewind"), "not_finite='rewind'"),
        (dict(custom_hooks=[dict(type="FreezeOscillationsHook")]), "FreezeOscillationsHook"),
        (dict(custom_hooks=[dict(type="QuantStatsHook")]), "QuantStatsHook"),
        (dict(log_config=dict(hooks=[dict(type="TensorboardLoggerHook")])), "TensorboardLoggerHook's inspection"),
    ],
)
def test_sections_that_do_not_go_with_it(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"parallel.kind='fsdp' does not work with {told}.*; remove one of the two."):
        read_settings(dict(parallel="fsdp", **section))


def test_sections_that_do() -> None:
    quiet = dict(type="TensorboardLoggerHook", layers=[], images=0)
    given = dict(amp=True, not_finite="skip", ema=True, log_config=dict(hooks=[quiet]), custom_hooks=[dict(type="Own")])
    settings = read_settings(dict(parallel=dict(kind="fsdp", wrap=["BasicBlock"]), **given))
    assert settings.parallel.wrap == ("BasicBlock",)
    with pytest.raises(ConfigError, match="wrap needs kind='fsdp'; got kind='ddp'"):
        read_settings(dict(parallel=dict(wrap=["BasicBlock"])))

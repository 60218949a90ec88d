"""Heads and top-k."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lbitcls.models import build_head, build_neck
from lbitcls.models.heads import topk_accuracy
from lbitcls.utils.errors import ConfigError

LOGITS = torch.tensor(
    [
        [0.1, 0.9, 0.5, 0.3],  # order 1 2 3 0
        [4.0, 3.0, 2.0, 1.0],  # order 0 1 2 3
        [-1.0, -2.0, -3.0, 0.0],  # order 3 0 1 2
    ]
)


def test_topk_by_hand() -> None:
    accuracies = topk_accuracy(LOGITS, torch.tensor([1, 1, 2]), (1, 2, 3, 4))
    assert {key: round(value.item(), 4) for key, value in accuracies.items()} == {
        "top-1": 33.3333,
        "top-2": 66.6667,
        "top-3": 66.6667,
        "top-4": 100.0,
    }


def test_topk_of_all_right_is_exactly_100() -> None:
    logits = torch.eye(7)
    assert topk_accuracy(logits, torch.arange(7), (1,))["top-1"].item() == 100.0


def test_topk_of_mixed_labels_counts_the_largest() -> None:
    labels = torch.tensor([[0.0, 0.6, 0.4, 0.0], [0.3, 0.7, 0.0, 0.0], [0.0, 0.0, 0.9, 0.1]])
    assert topk_accuracy(LOGITS, labels, (2,)) == topk_accuracy(LOGITS, torch.tensor([1, 1, 2]), (2,))


def test_topk_above_the_classes_is_left_out() -> None:
    assert set(topk_accuracy(LOGITS, torch.tensor([0, 1, 2]), (1, 5))) == {"top-1"}


@pytest.mark.parametrize("topk", [0, (), (1, 0), (1.5,)])
def test_bad_topk(topk: object) -> None:
    with pytest.raises(ConfigError, match="topk must be"):
        build_head(dict(type="ClsHead", topk=topk))


def test_topk_all_above_the_classes() -> None:
    with pytest.raises(ConfigError, match="every k is above num_classes=3"):
        build_head(dict(type="LinearClsHead", num_classes=3, in_channels=4, topk=(5,)))


def test_linear_head_is_a_linear_layer() -> None:
    head = build_head(dict(type="LinearClsHead", num_classes=3, in_channels=4, topk=1))
    feature = torch.rand(2, 4)
    expected = nn.functional.linear(feature, head.fc.weight, head.fc.bias)
    assert torch.equal(head(feature), expected)
    assert torch.equal(head((torch.rand(2, 9, 3, 3), feature)), expected)
    assert head.fc.bias.abs().max() == 0
    assert 0 < head.fc.weight.abs().max() < 0.1


def test_dropout_acts_in_training_alone() -> None:
    head = build_head(dict(type="LinearClsHead", num_classes=3, in_channels=64, dropout=0.5))
    feature = torch.rand(2, 64)
    assert not torch.equal(head.train()(feature), head(feature))
    assert torch.equal(head.eval()(feature), head(feature))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dropout=1.0), "dropout must be .*; got 1.0"),
        (dict(num_classes=0), "num_classes must be an integer ≥ 1; got 0"),
        (dict(in_channels="512"), "in_channels must be an integer ≥ 1; got '512'"),
        (dict(num_clases=3), "Did you mean 'num_classes'"),
        (dict(loss=dict(type="CrossEntropy")), "Did you mean 'CrossEntropyLoss'"),
    ],
)
def test_mistakes(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_head({**dict(type="LinearClsHead", num_classes=3, in_channels=4), **change})


def test_heads_refuse_what_they_cannot_take() -> None:
    linear = build_head(dict(type="LinearClsHead", num_classes=3, in_channels=4))
    with pytest.raises(ConfigError, match="GlobalAveragePooling"):
        linear(torch.rand(2, 4, 2, 2))
    conv = build_head(dict(type="ConvClsHead", num_classes=3, in_channels=4))
    with pytest.raises(ConfigError, match="Leave the neck out"):
        conv(torch.rand(2, 4))
    with pytest.raises(ConfigError, match="needs logits"):
        build_head(dict(type="ClsHead"))((torch.rand(2, 4, 2, 2),))


def test_conv_head_by_hand() -> None:
    head = build_head(dict(type="ConvClsHead", num_classes=3, in_channels=4)).eval()
    feature = torch.rand(2, 4, 5, 5)
    expected = torch.einsum("nchw,kc->nkhw", feature, head.conv.weight[:, :, 0, 0]).relu().mean((2, 3))
    torch.testing.assert_close(head(feature), expected)


def test_neck() -> None:
    neck = build_neck(dict(type="GlobalAveragePooling"))
    maps = torch.rand(2, 4, 3, 5)
    torch.testing.assert_close(neck(maps), maps.mean((2, 3)))
    pooled = neck((maps, torch.ones(2, 6)))
    assert [tuple(feature.shape) for feature in pooled] == [(2, 4), (2, 6)]

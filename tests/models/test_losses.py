"""Losses against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from lbitcls.models import build_loss
from lbitcls.utils.errors import ConfigError


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(8, 5, requires_grad=True)


LABEL = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def test_cross_entropy(logits: torch.Tensor) -> None:
    loss = build_loss(dict(type="CrossEntropyLoss", loss_weight=0.5))(logits, LABEL)
    by_hand = -logits.log_softmax(1)[torch.arange(8), LABEL].mean()
    torch.testing.assert_close(loss, 0.5 * by_hand)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, 0.5 * (logits.softmax(1) - one_hot(LABEL, 5)) / 8)


@pytest.mark.parametrize("use_soft", [False, True])
def test_cross_entropy_takes_both_kinds_of_labels(use_soft: bool, logits: torch.Tensor) -> None:
    loss = build_loss(dict(type="CrossEntropyLoss", use_soft=use_soft))
    torch.testing.assert_close(loss(logits, LABEL), loss(logits, one_hot(LABEL, 5).float()))


def test_class_weight(logits: torch.Tensor) -> None:
    weight = [1.0, 2.0, 0.0, 1.0, 3.0]
    loss = build_loss(dict(type="CrossEntropyLoss", class_weight=weight))
    torch.testing.assert_close(loss(logits, LABEL), cross_entropy(logits, LABEL, torch.tensor(weight)))
    assert not loss.state_dict()


def test_class_weight_of_other_length(logits: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="has 3 entries, but there are 5 classes"):
        build_loss(dict(type="CrossEntropyLoss", class_weight=[1, 2, 3]))(logits, LABEL)


@pytest.mark.parametrize(("mode", "smoothing"), [("original", 0.1), ("classy_vision", 0.1 / 1.1)])
def test_label_smoothing(mode: str, smoothing: float, logits: torch.Tensor) -> None:
    loss = build_loss(dict(type="LabelSmoothLoss", label_smooth_val=0.1, num_classes=5, mode=mode))
    target = (1 - smoothing) * one_hot(LABEL, 5) + smoothing / 5
    by_hand = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(logits, LABEL), by_hand)
    torch.testing.assert_close(loss(logits, one_hot(LABEL, 5).float()), by_hand)


def test_half_precision_logits_are_taken_in_float32(logits: torch.Tensor) -> None:
    half = logits.detach().bfloat16()
    loss = build_loss(dict(type="CrossEntropyLoss"))(half, LABEL)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy(half.float(), LABEL))
    assert build_loss(dict(type="CrossEntropyLoss"))(logits.double(), LABEL).dtype == torch.float64


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(label_smooth_val=1.0), "0 <= value < 1"),
        (dict(label_smooth_val=0.1, mode="orignal"), "Did you mean 'original'"),
        (dict(), "needs 'label_smooth_val'"),
    ],
)
def test_label_smooth_mistakes(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(dict(type="LabelSmoothLoss", **config))


def test_label_smooth_of_other_classes(logits: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="num_classes=7"):
        build_loss(dict(type="LabelSmoothLoss", label_smooth_val=0.1, num_classes=7))(logits, LABEL)

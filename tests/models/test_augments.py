"""Mixup and cutmix of a batch."""

from __future__ import annotations

import pytest
import torch

from lbitcls.models.augments import BatchAugments
from lbitcls.utils.errors import ConfigError


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("kind", ["BatchMixup", "MixUp"])
def test_mixup_mixes_images_as_labels(kind: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    img, label = batch
    before = img.clone()
    mixed, target = BatchAugments(dict(type=kind, alpha=1.0), num_classes=4)(img, label)
    ratio = target[0, 0]
    assert 0 < ratio < 1
    torch.testing.assert_close(mixed, ratio * img + (1 - ratio) * img.roll(1, 0))
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    assert torch.equal(img, before)


@pytest.mark.parametrize("kind", ["BatchCutMix", "CutMix"])
def test_cutmix_label_is_the_share_of_pixels(kind: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    img, label = batch
    torch.manual_seed(2)
    mixed, target = BatchAugments(dict(type=kind), num_classes=4)(img, label)
    own = (mixed == img).float().mean((1, 2, 3))
    torch.testing.assert_close(own, target[torch.arange(4), label])
    assert (own < 1).all()


def test_global_seed_decides(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    augment = BatchAugments([dict(type="MixUp"), dict(type="CutMix")], num_classes=4)
    results = []
    for _ in range(2):
        torch.manual_seed(11)
        results.append([augment(*batch) for _ in range(5)])
    for (img, label), (other_img, other_label) in zip(*results, strict=True):
        assert torch.equal(img, other_img)
        assert torch.equal(label, other_label)


def test_probability(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    augment = BatchAugments(dict(type="MixUp", prob=0.25), num_classes=4)
    mixed = sum(augment(*batch)[1].dim() == 2 for _ in range(400))
    assert 70 < mixed < 130


@pytest.mark.parametrize(
    ("augments", "classes", "message"),
    [
        (dict(type="Mixup2"), 4, "Did you mean"),
        (dict(type="MixUp", alpah=1), 4, "Did you mean 'alpha'"),
        (dict(type="MixUp", alpha=0), 4, "alpha must be a number above 0"),
        (dict(type="MixUp", num_classes=3), 4, "num_classes=3, but the head has 4"),
        (dict(type="MixUp"), None, "needs num_classes"),
        ([dict(type="MixUp", prob=0.7), dict(type="CutMix", prob=0.7)], 4, "more than 1"),
        ([], 4, "is empty"),
    ],
)
def test_mistakes(augments: object, classes: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BatchAugments(augments, classes)

"""Values next to a tie, which the part `networks` does not count as losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy.verification.verdict import Comparison, Verification
from lbitcls.quant import build_mtransformer, calibrate
from stress.ties import effect_of_ties, explained_by_ties

STEP = 0.0625


class Halved(nn.Module):
    """One linear layer with the weight 1, whose input is quantized in steps of 1/16; (N, 1, 1, 1) to (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc: Any = nn.Linear(1, 1, bias=False)
        self.fc.weight.data.fill_(1)

    def predict(self, images: Tensor) -> Tensor:
        return self.fc(images.flatten(1))


def model_and_images(distance: float) -> tuple[Any, Tensor]:
    """Return a model and 100 images, of which one lies `distance` steps above the middle between two levels."""
    entry: dict[str, Any] = dict(type="LSQLinear", num_bit_w=8, num_bit_a=4, signed=True)
    model: Any = build_mtransformer(dict(type="ModelTransformer", quan_policy=dict(Linear=entry)))(Halved()).eval()
    calibrate(model, [torch.linspace(-0.4, 0.4, 8).reshape(8, 1, 1, 1)])
    model.fc.input_quantizer.scale.data.fill_(STEP)
    images = STEP * torch.arange(100).remainder(7).reshape(100, 1, 1, 1)
    images[5] = STEP * (2.5 + distance)
    return model, images


@pytest.mark.parametrize(("distance", "flips"), [(2e-6, True), (-5e-6, True), (1e-3, False), (0.25, False)])
def test_only_a_value_next_to_a_tie_counts(distance: float, flips: bool) -> None:
    model, images = model_and_images(distance)
    weight = model.predict(torch.full((1, 1, 1, 1), STEP)).item() / STEP
    assert effect_of_ties(model, images) == pytest.approx(flips * abs(weight) * STEP / len(images), rel=1e-3)


@pytest.mark.parametrize(("mean", "changed", "explained"), [(1.5, 0, True), (2.5, 0, False), (1.5, 5, False)])
def test_ties_explain_as_much_as_they_cause(mean: float, changed: int, explained: bool) -> None:
    """By twice the effect, as for the yardstick; never the class of a clear image."""
    model, images = model_and_images(2e-6)
    base = Comparison("float64", "float32", "logits", 0.0, 0.0, 100.0, 100.0, 0, 0)
    row = Comparison("openvino", "float32", "logits", mean * effect_of_ties(model, images), 0.1, 90.0, 99.0, changed, 0)
    found = Verification(100, 100, {"logits": 0.125}, (base,), (row,), (), None, {}, 100)
    assert not found.passed
    assert explained_by_ties(found, model, images) == explained

"""Illnesses: each is provoked in a small network and found there, named with its remedy; a healthy one has none."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lbitcls.analysis.illnesses import NAMES, Finding, diagnose
from lbitcls.analysis.vital_signs import measure_grid, take_signs
from lbitcls.core.hooks.precise_bn import estimate_norms
from lbitcls.quant import set_quantization
from lbitcls.quant.quantizers.apot import APoT
from lbitcls.quant.quantizers.lsq import LSQ

sys.path.insert(0, str(Path(__file__).resolve().parent))

from networks import Network, float_network, images, quantized

Ill = Callable[[Any], None]


class Once(Network):
    """The network with one call of each layer, so that BatchNorm's statistics can fit."""

    def forward(self, img: Tensor) -> Tensor:
        return self.fc(self.norm(self.second(self.first(img).relu())).relu().mean((2, 3)))


def healthy(**options: Any) -> Any:
    """A calibrated network, convolutions at 4 bits, whose BatchNorm fits the images."""
    model = Once()
    model.load_state_dict(float_network().state_dict())
    estimate_norms(model.train(), images())
    model.eval()
    both = quantized(model.eval(), **{"num_bit_w": 4, "num_bit_a": 4, **options})
    estimate_norms(both.train(), images())
    return both.eval()


def found(model: Any, **options: Any) -> dict[tuple[str, str, str], Finding]:
    return {(f.illness, f.layer, f.part): f for f in diagnose(take_signs(model, images(), **options))}


def scaled(role: str, factor: float, layer: str = "second") -> Ill:
    def change(model: Any) -> None:
        getattr(model.get_submodule(layer), f"{role}_quantizer").scale.mul_(factor)

    return change


def drift(model: Any) -> None:
    model.norm.running_mean.add_(2 * model.norm.running_var.sqrt())


def crowd(model: Any) -> None:
    """Put the weights at borders between two integers."""
    scale = model.second.weight_quantizer.scale
    model.second.weight.copy_((torch.round(model.second.weight / scale).clamp(-6, 5) + 0.52) * scale)


PROVOKED: dict[tuple[str, str, str], tuple[Ill, str]] = {
    ("sign changed", "second", "weight"): (scaled("weight", -1), "The scale of the weight quantizer of second crossed"),
    ("scale collapsed", "second", "input"): (scaled("input", 1e-3), "collapsed to"),
    ("scale ran away", "fc", "weight"): (scaled("weight", 60, "fc"), "reaches .* times beyond the largest value"),
    ("mostly clipped", "second", "weight"): (scaled("weight", 0.1), "of the nonzero values .* are clipped"),
    ("idle levels", "second", "weight"): (
        scaled("weight", 2.5),
        "uses . of the 16 levels .*: its range",
    ),
    ("drifted statistics", "norm", "statistics"): (drift, "the means are off by 2 deviations"),
    ("oscillating weights", "second", "weight"): (crowd, "100 % of the weights of second lie at a border"),
}


@pytest.mark.parametrize("key", PROVOKED, ids=lambda key: key[0])
def test_a_provoked_illness_is_named_with_its_remedy(key: tuple[str, str, str]) -> None:
    model, (change, said) = healthy(), PROVOKED[key]
    assert not found(model)
    with torch.no_grad():
        change(model)
    ill = found(model)
    assert key in ill
    assert re.search(said, ill[key].text) and key[1] in ill[key].sentence and ill[key].remedy


def test_negative_values_of_an_unsigned_grid() -> None:
    model = healthy(signed=False)
    assert not found(model)
    signs = take_signs(model, [batch - 0.5 for batch in images()])
    (first,) = [f for f in diagnose(signs) if f.layer == "first" and f.part == "input"]
    assert first.illness == "signed data" and "signed=True" in first.remedy
    assert first.amount == pytest.approx(0.5, abs=0.1), "half of the signal is below zero"


def test_a_signed_grid_for_values_that_are_never_negative() -> None:
    ill = found(healthy(signed=True))
    text = ill["idle levels", "second", "input"].text
    assert "uses 8 of the 16 levels" in text and "hardly ever negative" in text and "signed=False" in text


def test_a_coarse_first_layer() -> None:
    ill = found(healthy(num_bit_w=2, num_bit_a=2))
    assert ("coarse first layer", "first", "weight") in ill
    assert not any(layer == "fc" for name, layer, _ in ill if name == "coarse first layer")


def test_oscillations_watched_in_training_count_rather_than_places() -> None:
    model = healthy()
    assert (
        "30 % of the weights of `second` oscillate"
        in found(model, oscillating={"second": 0.3})["oscillating weights", "second", "weight"].sentence
    )
    with torch.no_grad():
        crowd(model)
    assert not any("oscillating weights" in key for key in found(model, oscillating={"second": 0.05, "fc": 0.9})), (
        "few oscillate; and of 8 bits, a step passes several integers"
    )


def test_the_worst_comes_first_and_a_cause_hides_its_effects() -> None:
    model = healthy()
    with torch.no_grad():
        for change in (drift, scaled("weight", 2.5), scaled("input", 1e-3)):
            change(model)
    names = [finding.illness for finding in diagnose(take_signs(model, images()))]
    assert names[:2] == ["scale collapsed", "drifted statistics"] and "idle levels" in names
    assert [NAMES.index(name) for name in names] == sorted(NAMES.index(name) for name in names)


def test_measures_by_hand() -> None:
    quantizer = LSQ(2, signed=False).eval()
    quantizer.initialize(torch.tensor([0.0, 3.0]))
    with torch.no_grad():
        quantizer.scale.fill_(1.0)
    signs = measure_grid("layer", quantizer, torch.tensor([-2.0, 0.0, 0.6, 1.1, 4.0, 6.0]))
    assert signs.lost == pytest.approx(4 / 57.57) and signs.clipped == pytest.approx(2 / 4)
    assert signs.reach == pytest.approx(2.0) and (signs.levels_used, signs.span, signs.levels) == (3, 4, 4)
    assert not signs.signed and not signs.one_sided and signs.turned == 0 and signs.at_borders is None
    error = 4 + 0.16 + 0.01 + 1 + 9
    assert signs.sqnr_db == pytest.approx(10 * torch.log10(torch.tensor(57.57 / error)).item(), rel=1e-4)


def test_levels_of_uneven_grids_and_several_scales() -> None:
    weight = torch.randn(4, 3, 3, 3)
    uneven = APoT(4, role="weight").eval()
    uneven.initialize(weight)
    signs = measure_grid("layer", uneven, weight)
    assert signs.levels == 15 and signs.levels_used <= signs.span <= 15 and signs.at_borders is None
    several = LSQ(3, role="weight", num_channels=4).eval()
    several.initialize(weight)
    with torch.no_grad():
        several.scale[0].neg_()
    signs = measure_grid("layer", several, weight)
    assert signs.turned == 0.25 and signs.levels == 8 and 5 < signs.levels_used <= signs.span <= 8
    assert signs.at_borders is not None and 0 < signs.at_borders < 0.3


def test_nothing_changes_and_quantizers_that_are_off_are_left_out() -> None:
    model = healthy().train()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    signs = take_signs(model, images())
    assert [(s.layer, s.role) for s in signs.grids][:3] == [
        ("first", "weight"),
        ("first", "input"),
        ("second", "weight"),
    ]
    assert signs.first == "first" and [norm.name for norm in signs.norms] == ["norm"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()] and torch.equal(generator, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())
    set_quantization(model, False)
    assert not take_signs(model, images()).grids and not found(model)

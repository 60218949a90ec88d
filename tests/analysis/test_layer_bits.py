"""Bits that each layer can take: trials against direct computation, the common limit, and reasons."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.analysis.layer_bits import BITS, BUDGET, BitsReport, fewest_bits, find_limit, try_bits
from lbitcls.analysis.measures import output_error
from lbitcls.quant import build_mtransformer, calibrate, named_quantizers
from lbitcls.utils.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parent))

from networks import float_network, images

LABELS = torch.arange(12) % 5


def policy(bits: int = 8, **options: Any) -> Any:
    entries = {
        k: dict(type=f"LSQ{s}", num_bit_w=bits, num_bit_a=bits) for k, s in (("Conv2d", "Conv"), ("Linear", "Linear"))
    }
    entries["Conv2d"] |= options
    return build_mtransformer(dict(type="ModelTransformer", quan_policy=entries, exclude_layers=["unused"]))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images()])


@pytest.fixture(scope="module")
def report() -> BitsReport:
    model = float_network()
    return try_bits(model, policy().plan(model), images(), LABELS)


@pytest.mark.parametrize(("name", "bits"), [("first", 3), ("second", 5), ("fc", 2)])
def test_a_trial_by_hand(report: BitsReport, name: str, bits: int) -> None:
    model = float_network()
    others = [n for n in ("first", "second", "fc") if n != name]
    entries = dict(type="LSQConv" if name != "fc" else "LSQLinear", num_bit_w=bits, num_bit_a=bits)
    kind = "Conv2d" if name != "fc" else "Linear"
    transformer = build_mtransformer(
        dict(type="ModelTransformer", quan_policy={kind: entries}, exclude_layers=["unused", *others])
    )
    alone = transformer(copy.deepcopy(model))
    calibrate(alone, images(), "mse")
    trial = next(t for layer in report.layers if layer.name == name for t in layer.trials if t.bits == bits)
    expected = output_error(logits(model), logits(alone.eval()), LABELS)
    assert trial.error.kl == pytest.approx(expected.kl, rel=1e-5) and trial.error.changed == expected.changed
    losses = [nn.functional.cross_entropy(logits(m), LABELS).item() for m in (alone, model)]
    assert trial.loss == pytest.approx(losses[0] - losses[1], abs=1e-6)
    w = model.get_submodule(name).weight.detach()
    with torch.no_grad():
        noise = w - alone.get_submodule(name).weight_quantizer(w)
    assert trial.weight_db == pytest.approx(float(10 * torch.log10(w.square().sum() / noise.square().sum())), rel=1e-4)


def test_more_bits_are_better_and_the_model_stays(report: BitsReport) -> None:
    for layer in report.layers:
        assert tuple(trial.bits for trial in layer.trials) == BITS
        assert layer.trials[0].sqnr_db > layer.trials[-1].sqnr_db + 20
    model = float_network()
    before = copy.deepcopy(model.state_dict())
    again = try_bits(model.train(), policy().plan(model), images(), LABELS)
    assert again == report and model.training
    assert model.state_dict().keys() == before.keys() and not list(named_quantizers(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_recommendation_stays_within_the_limit(report: BitsReport) -> None:
    total = 0.0
    for layer in report.layers:
        costs = {trial.bits: trial.error.kl for trial in layer.trials}
        assert layer.bits == fewest_bits(costs, report.limit)
        total += costs[layer.bits]
        if layer.bits > 2:
            assert costs[layer.bits - 1] > report.limit
            assert f"{layer.bits - 1} bits would cost" in layer.why and "dB" in layer.why
    assert 0 < total <= BUDGET and report.together.kl < 10 * BUDGET
    assert report.mean_bits == pytest.approx(
        sum(one.bits * one.parameters for one in report.layers) / sum(one.parameters for one in report.layers)
    )


def test_the_limit_is_common_and_as_large_as_the_budget_allows() -> None:
    costs = [{8: 0.0, 4: 0.01, 2: 0.9}, {8: 0.001, 4: 0.03, 2: 0.05}]
    assert find_limit(costs, 0.05) == 0.03 and find_limit(costs, 0.02) == 0.01 and find_limit(costs, 1.0) == 0.9
    assert find_limit([{8: 0.5, 2: 0.9}], 0.05) == 0.0
    assert fewest_bits({8: 0.5, 2: 0.9}, 0.0) == 8
    assert fewest_bits({8: 0.0, 7: 0.2, 6: 0.0}, 0.1) == 8, "6 bits are better than 7 by chance alone"


def test_entries_keep_their_options() -> None:
    """Weights alone, per channel: no input quantizer is tried, and the reason names the weight."""
    model = float_network()
    report = try_bits(model, policy(num_bit_a=32, per_channel=True).plan(model), images())
    first = report.layers[0]
    assert first.name == "second" and first.trials[0].input_db is None and first.trials[0].loss is None
    assert not report.labelled and report.float_top1 is None
    assert "inputs" not in first.why


def test_without_images() -> None:
    model = float_network()
    with pytest.raises(DataError, match="there are no images to try the bits on"):
        try_bits(model, policy().plan(model), [])

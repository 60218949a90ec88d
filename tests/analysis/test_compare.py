"""Comparison of two models, checked against direct computation, for every kind of quantization."""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.analysis import passes
from lbitcls.analysis.compare import compare_models
from lbitcls.analysis.findings import Analysis
from lbitcls.analysis.measures import output_error
from lbitcls.analysis.passes import layers_of, quantizers_of
from lbitcls.analysis.scan import graft
from lbitcls.quant import named_quantizers, set_quantization
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.quantizer_errors import NotInitializedError
from lbitcls.quant.quantizers.apot import magnitudes
from lbitcls.utils.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).resolve().parent))

from networks import float_network, images, quantized


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """Return a quantized network whose weights changed a little, and the float one."""
    model = float_network()
    both = quantized(model)
    with torch.no_grad():
        both.first.weight.mul_(1.02)
    return both, model


@pytest.fixture(scope="module")
def analysis(pair: Any) -> Analysis:
    labels = torch.arange(12) % 5
    return compare_models(*pair, images(), labels)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in images()])


def test_layers_come_in_the_order_of_the_forward_pass(analysis: Analysis) -> None:
    assert [layer.name for layer in analysis.layers] == ["first", "second", "fc"]
    assert analysis.images == 12 and analysis.image_shape == (3, 6, 6)


def test_the_whole_is_compared_with_the_float_model(pair: Any, analysis: Analysis) -> None:
    both, model = pair
    labels = torch.arange(12) % 5
    assert analysis.error == output_error(logits(model), logits(both), labels)
    assert analysis.float_top1 == (logits(model).argmax(1) == labels).double().mean().item()
    assert analysis.reference == "float" and analysis.basis == "quantized" and analysis.retrained
    assert analysis.weight_similarity is not None and 0.999 < analysis.weight_similarity < 1


def test_the_scan_of_a_calibrated_model_by_hand() -> None:
    """Each row is the float model with some layers' quantizers."""
    model = float_network()
    both, names = quantized(model), ["first", "second", "fc"]
    analysis = compare_models(both, model, images(), torch.arange(12) % 5)
    assert analysis.basis == "float" and analysis.everything == _error(model, _with(both, names))
    for place, layer in enumerate(analysis.layers):
        scan = layer.scan
        assert scan is not None
        assert scan.alone == _error(model, _with(both, [layer.name]))
        assert scan.without == _error(model, _with(both, [n for n in names if n != layer.name]))
        assert scan.up_to == _error(model, _with(both, names[: place + 1]))
        weight, inputs = quantizers_of(both.get_submodule(layer.name))
        with quantizing(both, [weight]):
            assert scan.weight_alone == _error(model, logits(both))
        with quantizing(both, [inputs]):
            assert scan.input_alone == _error(model, logits(both))
    _check_ranks(analysis)


def test_the_scan_of_a_trained_model_by_hand(pair: Any, analysis: Analysis) -> None:
    """Each row is the quantized model with some layers' quantizers off; the gain is measured against the float one."""
    both, model = pair
    names, all_on = ["first", "second", "fc"], [q for _, q in named_quantizers(both)]
    assert analysis.everything == analysis.error
    for layer in analysis.layers:
        scan, off = layer.scan, _with(both, [n for n in names if n != layer.name])
        assert scan is not None and scan.up_to is None
        assert scan.alone == _error(both, off) and scan.without == _error(model, off)
        weight, inputs = quantizers_of(both.get_submodule(layer.name))
        with quantizing(both, [q for q in all_on if q is not weight]):
            without_weight = logits(both)
        assert scan.weight_alone == _error(both, without_weight)
        with quantizing(both, [q for q in all_on if q is not inputs]):
            without_inputs = logits(both)
        assert scan.input_alone == _error(both, without_inputs)
    _check_ranks(analysis)


def _check_ranks(analysis: Analysis) -> None:
    costs = [layer.scan.alone.kl for layer in analysis.ranked]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1] > 0
    assert [layer.scan.rank for layer in analysis.ranked] == [1, 2, 3]


def _with(model: nn.Module, names: list[str]) -> Tensor:
    with quantizing(model, [q for name in names for q in quantizers_of(model.get_submodule(name))]):
        return logits(model)


def _error(model: nn.Module, other: Tensor) -> Any:
    return output_error(logits(model), other, torch.arange(12) % 5)


def test_signals_by_hand(pair: Any, analysis: Analysis) -> None:
    both, model = pair
    first, last = analysis.layers[0], analysis.layers[-1]
    x = torch.cat(images())
    with torch.no_grad():
        q = both.first.input_quantizer(x)
        assert first.input.sqnr_db == pytest.approx(_sqnr(x, q), rel=1e-5)
        assert first.input.number == x.numel() and first.input.grid.num_bits == 3
        y, yq = torch.conv2d(x, both.first.weight, both.first.bias, padding=1), both.first(x)
        assert first.output.own_sqnr_db == pytest.approx(_sqnr(y, yq), rel=1e-4)
        assert first.output.sqnr_db == pytest.approx(_sqnr(model.first(x), yq), rel=1e-4)
        w = both.first.weight
        assert first.weight.sqnr_db == pytest.approx(_sqnr(w, both.first.weight_quantizer(w)), rel=1e-5)
    assert last.output.sqnr_db == pytest.approx(_sqnr(logits(model), logits(both)), rel=1e-5)
    assert first.weight_similarity == pytest.approx(1.0)
    second = analysis.layers[1]
    assert second.input.number == 2 * 12 * 4 * 36, "it is called twice"


def _sqnr(x: Tensor, other: Tensor) -> float:
    return float(10 * torch.log10(x.square().sum() / (x - other).square().sum()))


def test_costs_by_hand(analysis: Analysis) -> None:
    first, second, fc = analysis.layers
    assert first.macs == 36 * 4 * 27 and second.macs == 2 * 36 * 4 * 36 and fc.macs == 20
    assert first.bit_operations == first.macs * 9 and first.float_bit_operations == first.macs * 1024
    assert first.size_bits == 4 * 27 * 3 + 4 * 32 and fc.size_bits == 20 * 8 + 5 * 32
    assert analysis.totals.parameters == 4 * 27 + 4 + 144 + 8 + 12 + 25
    assert analysis.totals.macs == first.macs + second.macs + fc.macs
    assert (fc.num_bit_w, fc.num_bit_a, fc.method, fc.kind) == (8, 8, "LSQ", "Linear")


def test_it_is_deterministic_and_changes_nothing(pair: Any, analysis: Analysis) -> None:
    both, model = pair
    both.norm.train()
    before = [(n, t.clone()) for m in pair for n, t in m.state_dict().items()]
    modes = {name: module.training for name, module in both.named_modules()}
    again = compare_models(both, model, images(), torch.arange(12) % 5)
    assert asdict(again) == asdict(analysis)
    assert {name: module.training for name, module in both.named_modules()} == modes
    both.norm.eval()
    after = [(n, t) for m in pair for n, t in m.state_dict().items()]
    assert all(a == b and torch.equal(s, t) for (a, s), (b, t) in zip(before, after, strict=True))
    assert all(quantizer.is_enabled for _, quantizer in named_quantizers(both))
    assert not any(module._forward_hooks for one in pair for module in one.modules())


def test_no_activation_is_kept(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a sample of a layer's output is kept, and only while its batch is processed."""
    monkeypatch.setattr(passes, "SAMPLE", 10)
    held: list[int] = []
    original = passes.OutputSamples.keep

    def keep(self: Any, name: str, y: Tensor) -> None:
        original(self, name, y)
        held.append(sum(kept.numel() for kept in self._kept.values()))
        assert all(kept.untyped_storage().nbytes() == 4 * kept.numel() for kept in self._kept.values())

    monkeypatch.setattr(passes.OutputSamples, "keep", keep)
    sampled = compare_models(*pair, images())
    assert max(held) == 40, "four calls of layers, ten values of each"
    assert sampled.layers[0].output is not None and sampled.layers[0].output.sqnr_db is not None


@pytest.mark.parametrize(
    "options",
    [
        dict(per_channel=True),
        dict(fold_bn=True),
        dict(fold_bn=True, per_channel=True),
        dict(entry="APoT", num_bit_w=4, num_bit_a=4),
        dict(entry="DoReFa"),
        dict(entry="LSQPlus", per_channel=True),
        dict(entry="TorchQAT"),
        dict(quant_activation=False),
        dict(num_bit_w=32),
    ],
    ids=str,
)
def test_every_kind_of_quantization(options: dict[str, Any]) -> None:
    model = float_network()
    both = quantized(model, **options)
    analysis = compare_models(both, model, images())
    assert analysis.basis == "float" and not analysis.retrained
    assert analysis.error is not None and analysis.everything is not None
    assert analysis.error.kl == pytest.approx(analysis.everything.kl, rel=1e-6), "untrained, both are the same model"
    assert [layer.scan.up_to for layer in analysis.layers][-1] == analysis.everything
    second = analysis.layers[1]
    quantizer = both.second.weight_quantizer
    if options.get("num_bit_w") == 32:
        assert second.weight.grid is None and second.num_bit_w == 32 and second.scan is not None
        return
    seen = quantizer.to_integer(both.second.weight_to_quantize()).unique()
    grid = second.weight.grid
    assert grid is not None and grid.levels_used == len(seen)
    assert grid.scales == (4 if options.get("per_channel") else 1)
    assert second.folded == bool(options.get("fold_bn"))
    assert (second.weight.values.before == second.weight.values.float_model) and second.weight_similarity == 1.0
    assert (second.input.grid is None) == (options.get("quant_activation") is False)
    if options.get("entry") == "APoT":
        assert grid.levels is not None and grid.levels[-1] == magnitudes(3)[-1] and grid.levels_available == 15


def test_a_layer_left_float() -> None:
    model = float_network()
    both = quantized(model, bSetQ=False)
    analysis = compare_models(both, model, images())
    first, _, fc = analysis.layers
    assert first.method is None and first.scan is None and first.num_bit_w == 32 and first.weight.grid is None
    assert first.output is not None and first.output.own_sqnr_db is None and first.output.own_cosine is None
    assert fc.scan is not None and fc.scan.rank == 1 and fc.scan.without.kl == 0 and fc.scan.without.sqnr_db is None
    assert analysis.check_up is not None


def test_a_float_model_alone() -> None:
    model = float_network()
    analysis = compare_models(model, None, images())
    assert analysis.error is None and analysis.everything is None and analysis.reference is None
    assert analysis.check_up is None
    assert [layer.name for layer in analysis.layers] == ["first", "second", "fc"]
    assert all(layer.scan is None and layer.output is None for layer in analysis.layers)
    assert analysis.layers[0].weight.maximum == model.first.weight.max().item()


def test_a_quantized_model_alone(pair: Any) -> None:
    both, _ = pair
    analysis = compare_models(both, None, images())
    assert analysis.reference == "own" and analysis.basis == "quantized" and not analysis.retrained
    assert analysis.error == analysis.own_error and analysis.everything is not None and analysis.everything.kl == 0
    assert all(layer.scan.alone == layer.scan.without for layer in analysis.layers)
    assert analysis.layers[0].weight.values.float_model == () and analysis.layers[0].weight_similarity is None


def test_weights_that_have_nothing_in_common_are_a_trained_models(pair: Any) -> None:
    both, _ = pair
    other = float_network()
    with torch.no_grad():
        for layer in layers_of(other).values():
            layer.weight.copy_(torch.randn_like(layer.weight))
    analysis = compare_models(both, other, images())
    assert analysis.basis == "quantized" and analysis.reference == "float"
    assert analysis.everything == analysis.error != analysis.own_error


def test_a_graft_is_the_float_model_on_the_other_grids(pair: Any) -> None:
    both, model = pair
    grafted = graft(both, model)
    assert torch.equal(grafted.first.weight, model.first.weight)
    assert torch.equal(grafted.first.weight_quantizer.scale, both.first.weight_quantizer.scale)
    assert not torch.equal(both.first.weight, model.first.weight)


def test_what_cannot_be_compared(pair: Any) -> None:
    both, model = pair
    with pytest.raises(DataError, match="no images"):
        compare_models(both, model, [])
    other = float_network()
    other.second = nn.Conv2d(4, 4, 1)
    with pytest.raises(ConfigError, match=r"second is \(4, 4, 1, 1\) in the float one and \(4, 4, 3, 3\)"):
        compare_models(both, other, images())
    del other.second
    with pytest.raises(ConfigError, match="second is missing in the float one"):
        compare_models(both, other, images())
    broken = float_network()
    with torch.no_grad():
        broken.fc.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="the float model is not finite"):
        compare_models(both, broken, images())
    fresh = quantized(model)
    fresh.fc.input_quantizer.initialized.fill_(False)
    fresh.fc.input_quantizer.refresh()
    with pytest.raises(NotInitializedError):
        compare_models(fresh, model, images())


def test_quantizers_that_are_off_count_as_float(pair: Any) -> None:
    both = copy.deepcopy(pair[0])
    set_quantization(both, False)
    analysis = compare_models(both, pair[1], images())
    assert analysis.everything is None and all(layer.method is None for layer in analysis.layers)

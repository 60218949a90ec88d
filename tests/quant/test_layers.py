"""Quantized layers accept the same inputs as the float layers that they replace."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy import export_model
from lbitcls.deploy.runtime.engine import load
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.cost import count_macs
from lbitcls.quant.layers import ENTRY_SUFFIXES, LAYER_KINDS
from lbitcls.quant.methods import build_quant_layer

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Conv2d": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 6, 6)),
    "Linear": (lambda: nn.Linear(3, 4), (2, 5, 3)),
    "Conv1d": (lambda: nn.Conv1d(3, 4, 3), (2, 3, 6)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), (2, 3, 6, 6)),
}


@pytest.mark.parametrize("kind", LAYER_KINDS)
def test_the_signature_is_the_float_layers(kind: str) -> None:
    quantized = inspect.signature(LAYER_KINDS[kind].forward).parameters
    original = inspect.signature(LAYER_KINDS[kind].float_type.forward).parameters
    assert [(p.name, p.kind, p.default) for p in quantized.values()] == [
        (p.name, p.kind, p.default) for p in original.values()
    ]


@pytest.mark.parametrize("bits", [dict(num_bit_w=4, num_bit_a=4), dict(num_bit_w=32, num_bit_a=4)])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_input_may_be_a_keyword(kind: str, bits: dict[str, int]) -> None:
    make, shape = LAYERS[kind]
    layer = build_quant_layer(dict(type=f"LSQ{ENTRY_SUFFIXES[kind]}", **bits), make())
    x = torch.randn(shape)
    calibrate(layer, [x])
    assert torch.equal(layer(input=x), layer(x))
    if kind == "ConvTranspose2d":
        larger = layer(input=x, output_size=[14, 14])
        assert larger.shape[2:] == (14, 14) and torch.equal(larger, layer(x, [14, 14]))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.conv, self.fc = nn.ConvTranspose2d(3, 4, 3, stride=2), nn.Conv2d(4, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.up(input=x, output_size=[2 * x.shape[2] + 2, 2 * x.shape[3] + 2])
        return self.fc(input=self.conv(input=wide).relu().mean((2, 3)))


@torch.no_grad()
def test_a_model_that_names_its_inputs_is_counted_calibrated_and_exported(tmp_path: Any) -> None:
    model, x = Keywords(), torch.randn(4, 3, 6, 6)
    macs = count_macs(model, x[:1])
    policy = {k: dict(type=f"LSQ{s}", num_bit_w=8, num_bit_a=8) for k, s in ENTRY_SUFFIXES.items()}
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model).eval()
    calibrate(model, [x])
    assert count_macs(model, x[:1]) == macs == {"up": 3 * 36 * 36, "conv": 8 * 12 * 12 * 36, "fc": 32}
    export_model(model, tmp_path / "model.onnx", input_shape=(3, 6, 6))
    logits = torch.from_numpy(load(tmp_path / "model.onnx").predict(x.numpy()))
    torch.testing.assert_close(logits, model(x), atol=0.05, rtol=0.05)

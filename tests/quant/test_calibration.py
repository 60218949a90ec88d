"""Calibration, and the size of a quantized model."""

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant import build_mtransformer, model_size
from lbitcls.quant.calibration import calibrate, quantizer_parameters, set_quantization, uninitialized
from lbitcls.utils.errors import DataError


def model(**options: object) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 4, 3))
    entry = dict(type="LSQConv", num_bit_w=4, num_bit_a=4, **options)
    return build_mtransformer(dict(type="ModelTransformer", quan_policy=dict(Conv2d=entry)))(net)


def test_calibration_initialises_everything_once_and_leaves_the_rest_alone() -> None:
    net, x = model(), torch.randn(8, 3, 8, 8)
    state = torch.random.get_rng_state()
    norm = {k: v.clone() for k, v in net[1].state_dict().items()}
    assert calibrate(net.train(), [x, {"img": x}]) == 4
    assert not uninitialized(net) and net.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, norm[k]) for k, v in net[1].state_dict().items())
    scale = net[0].input_quantizer.scale.detach().clone()
    assert calibrate(net, [x * 100]) == 0 and torch.equal(net[0].input_quantizer.scale, scale)


def test_the_first_scale_of_inputs_uses_all_batches() -> None:
    net, batches = model(), [torch.rand(8, 3, 8, 8), torch.rand(8, 3, 8, 8) * 3]
    calibrate(net, batches)
    mean = torch.stack(batches).abs().mean()
    torch.testing.assert_close(net[0].input_quantizer.scale.detach(), 2 * mean / 15**0.5)
    assert not net[0].input_quantizer.signed


def test_no_data_is_an_error_that_names_the_layer() -> None:
    with pytest.raises(DataError, match=r"no data reached 0\.input_quantizer and 1 others"):
        calibrate(model(), [])


def test_a_layer_that_the_forward_pass_leaves_out_is_named() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = model(), model()[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(DataError, match=r"no data reached spare\.input_quantizer;"):
        calibrate(Unused(), [torch.randn(1, 3, 8, 8)])


def test_size_counts_weights_at_their_bits_while_quantization_is_on() -> None:
    net = model(per_channel=True)
    weights, rest = 4 * 3 * 9 + 4 * 4 * 9, 4 + 4 + 4 * 4  # biases, BatchNorm's four vectors
    assert model_size(net)["float_kib"] * 1024 == 4 * (weights + rest)
    scales = 2 * (4 + 1) * 8
    assert model_size(net)["quantized_kib"] * 1024 == weights / 2 + 4 * rest + scales
    set_quantization(net, False)
    assert model_size(net)["quantized_kib"] == model_size(net)["float_kib"]
    assert len(quantizer_parameters(net)) == 4

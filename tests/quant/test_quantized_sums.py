"""Skip connections in 8 bits in training: their grids, what they share, training, checkpoints, other kernels."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from lbitcls.models.builder import build_backbone
from lbitcls.quant import build_mtransformer, calibrate, named_quantizers
from lbitcls.quant.quantized_sums import QuantAdd, quantized_additions, trained_residual_bits
from lbitcls.utils.errors import ConfigError

RESNET = dict(type="ResNet_CIFAR", depth=18, base_channels=4, num_stages=2, out_indices=(1,))


def images(seed: int = 1) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A backbone whose pooled features are the logits."""

    def __init__(self, backbone: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)[-1].mean((2, 3))


def section(bits: int, method: str = "LSQ", **options: Any) -> dict[str, Any]:
    policy = dict(Conv2d=dict(type=f"{method}Conv", num_bit_w=bits, num_bit_a=bits))
    return dict(type="ModelTransformer", quan_policy=policy, **{"residual_bits": 8, **options})


def net(bits: int = 8, method: str = "LSQ", backbone: dict[str, Any] = RESNET, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_mtransformer(section(bits, method, **options))(Net(backbone))


def calibrated(bits: int = 8, **options: Any) -> Any:
    model = net(bits, **options)
    calibrate(model, [images()])
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 1) -> Tensor:
    loss = functional.cross_entropy(model(images(seed)), torch.arange(4))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def grid_error(quantizer: Any, x: Tensor) -> float:
    steps = x / quantizer.qparams().scale
    return float((steps - steps.round()).abs().max())


def test_off_by_default() -> None:
    plain = net(residual_bits=None)
    assert trained_residual_bits(plain) is None and trained_residual_bits(net()) == 8
    assert not any(".add." in name for name in plain.state_dict())


def test_operands_lie_on_their_grids() -> None:
    model = calibrated().eval()
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, addition in quantized_additions(model):
        addition.register_forward_hook(
            lambda m, inputs, y, name=name: seen.update({name: (inputs[1].clone(), (y - _skip(m, inputs[1])).clone())})
        )
    with torch.no_grad():
        model(images())
    assert len(seen) == 4
    for name, addition in quantized_additions(model):
        skip, own = seen[name]
        assert grid_error(addition.own_quantizer, own) < 1e-2
        if addition.of_input:
            assert grid_error(addition.skip_quantizer, skip) < 1e-3


def _skip(addition: QuantAdd, skip: Tensor) -> Tensor:
    return skip if addition.of_input else addition.skip_quantizer(skip)


def test_a_layer_of_8_bits_shares_its_grid_with_the_skip_connection() -> None:
    block = net(8).backbone.layer1[0]
    assert block.add.skip_quantizer is block.conv1.input_quantizer
    block = net(4).backbone.layer1[0]
    assert block.add.skip_quantizer is not block.conv1.input_quantizer and block.add.skip_quantizer.num_bits == 8


def test_a_grid_that_does_not_follow_the_data_is_not_shared() -> None:
    block = net(8, "DoReFa").backbone.layer1[0]
    assert block.add.skip_quantizer is not block.conv1.input_quantizer


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_that_read_a_blocks_input_share_a_grid(bits: int) -> None:
    block = net(bits).backbone.layer2[0]
    assert block.downsample[0].input_quantizer is block.conv1.input_quantizer
    assert block.add.skip_quantizer is not block.conv1.input_quantizer
    block = net(bits, special_layers=_float("backbone.layer2.0.downsample.0")).backbone.layer2[0]
    assert type(block.downsample[0]) is nn.Conv2d


def _float(name: str) -> dict[str, Any]:
    return dict(layers_name=[name], convert_type=[None])


def _learned(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return named_quantizers(model)


def test_scales_learn_and_a_checkpoint_restores_them() -> None:
    model = calibrated()
    scales: dict[str, Any] = {n: q.scale.detach().clone() for n, q in _learned(model) if ".add." in n}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for seed in range(2):
        step(model, optimizer, seed)
    moved = [name for name, q in _learned(model) if name in scales and not torch.equal(q.scale, scales[name])]
    assert sorted(moved) == sorted(scales) and len(scales) == 5
    other = net()
    other.load_state_dict(model.state_dict())
    resumed = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(model, optimizer, 7), step(other, resumed, 7))
    assert torch.equal(model.eval()(images()), other.eval()(images()))


def test_the_gradient_of_a_shared_step_is_that_of_one_quantization() -> None:
    """`conv1` quantizes again what is on the grid already, which adds nothing to the step's gradient."""
    model = calibrated()
    block = model.backbone.layer1[0]
    x = images(3)[:, :1].expand(4, 4, 8, 8).contiguous() * 3
    block.conv1(block.add.enter(x)).square().sum().backward()
    twice = block.conv1.input_quantizer.scale.grad.clone()
    model.zero_grad()
    block.conv1(x).square().sum().backward()
    torch.testing.assert_close(twice, block.conv1.input_quantizer.scale.grad, rtol=1e-4, atol=1e-6)


def test_what_is_excluded_stays_float() -> None:
    model = net(exclude_layers=["backbone.layer1"])
    assert [name for name, _ in quantized_additions(model)] == ["backbone.layer2.0.add", "backbone.layer2.1.add"]


def test_the_plan_lists_the_additions() -> None:
    plan = build_mtransformer(section(8)).plan(Net(RESNET))
    assert len(plan.additions) == 4 and "skip connections in 8 bits: backbone.layer1.0.add, " in plan.table()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(residual_bits=4), "residual_bits must be 8; got 4"),
        (dict(backbone=dict(type="VGGSmall")), "residual_bits: Net has no additions that can be quantized"),
        (dict(exclude_layers=["backbone.layer1", "backbone.layer2"]), "has no additions"),
    ],
)
def test_what_cannot_be_quantized_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        net(**options)


def test_integer_kernels_train_the_same_model(integer_kernels: None) -> None:
    model = calibrated()
    loss = step(model, torch.optim.SGD(model.parameters(), lr=0.01))
    plain = copy.deepcopy(calibrated()).double()
    expected = functional.cross_entropy(plain(images().double()), torch.arange(4))
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-2, atol=0)


def test_a_compiled_model_computes_the_same() -> None:
    model = calibrated(backbone={**RESNET, "num_stages": 1, "out_indices": (0,)}).eval()
    with torch.no_grad():
        expected = model(images())
        given = torch.compile(model, backend="eager", fullgraph=True)(images())
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """Run the test in a process group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_sees_each_shared_parameter_once(one_process: None) -> None:
    model = calibrated()
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    ends = []
    for each in (model, wrapped):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05)
        step(each, optimizer)
        ends.append(step(each, optimizer))
    assert torch.equal(*ends)

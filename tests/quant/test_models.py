"""Models of torchvision and timm are quantized without touching their code."""

import time

import pytest
import torch
import torchvision
from torch import nn

from lbitcls.quant import build_mtransformer, calibrate, named_quantizers
from lbitcls.quant.layers import QuantLayer

FAST = ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"]
SLOW = [
    "mobilenet_v3_small",
    "efficientnet_b0",
    "vgg11_bn",
    "densenet121",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_32",
]
SIDE = {"vit_b_32": 224}
TIMM = ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224"]


def quantize_and_step(model: nn.Module, side: int) -> nn.Module:
    """Quantize all of a model's layers, calibrate, run a training step, and return the model."""
    names = {name for name, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    policy = dict(
        Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4, per_channel=True),
        Linear=dict(type="LSQLinear", num_bit_w=4, num_bit_a=4, per_channel=True),
    )
    transformer = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))
    keys = set(model.state_dict())
    model = transformer(model)
    assert {name for name, m in model.named_modules() if isinstance(m, QuantLayer)} == names
    assert keys <= set(model.state_dict())
    images = torch.randn(2, 3, side, side)
    calibrate(model.train(), [images])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model(images).square().mean().backward()
    learned = [p for _, quantizer in named_quantizers(model) for p in quantizer.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned)
    optimizer.step()
    assert model.eval()(images).isfinite().all()
    return model


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_torchvision_models(name: str) -> None:
    quantize_and_step(torchvision.models.get_model(name, weights=None), SIDE.get(name, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_models(name: str) -> None:
    timm = pytest.importorskip("timm")
    quantize_and_step(timm.create_model(name, pretrained=False), 224)


def test_attention_stays_float_and_the_plan_says_why() -> None:
    model = torchvision.models.vit_b_32(weights=None)
    policy = dict(Linear=dict(type="LSQLinear", num_bit_w=4, num_bit_a=4))
    plan = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy)).plan(model)
    attention = [row for row in plan if row.kind == "MultiheadAttention"]
    assert len(attention) == 12 and all("attention" in row.rule for row in attention)


def test_transforming_keeps_every_tensor_of_the_model_and_takes_less_than_a_second() -> None:
    model = torchvision.models.resnet50(weights=None)
    before = dict(model.state_dict(keep_vars=True))
    policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    start = time.process_time()
    build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model)
    assert time.process_time() - start < 1.0
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, tensor in before.items())

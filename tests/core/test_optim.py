"""Optimizers by name, and the effect of `paramwise_cfg` on each parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lbitcls.core.optim import build_optimizer
from lbitcls.utils.errors import ConfigError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.dw = nn.Conv2d(4, 4, 3, groups=4)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(()))


def settings(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    by_id = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


def test_one_group_without_paramwise() -> None:
    model = Net()
    optimizer = build_optimizer(model, dict(type="AdamW", lr=0.01, weight_decay=0.1))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["initial_lr"] == 0.01


def test_paramwise() -> None:
    model = Net()
    paramwise = dict(
        norm_decay_mult=0.0,
        bias_lr_mult=2.0,
        bias_decay_mult=0.5,
        dwconv_decay_mult=0.1,
        custom_keys={"head": dict(lr_mult=10.0), "head.bias": dict(decay_mult=0.0)},
    )
    cfg = dict(type="SGD", lr=0.1, weight_decay=0.01, paramwise_cfg=paramwise)
    optimizer = build_optimizer(model, cfg, quantizers=[model.scale])
    expected = {
        "scale": (0.1, 0.0),
        "conv.weight": (0.1, 0.01),
        "conv.bias": (0.2, 0.005),
        "dw.weight": (0.1, 0.001),
        "dw.bias": (0.2, 0.001),
        "bn.weight": (0.1, 0.0),
        "bn.bias": (0.1, 0.0),
        "head.weight": (1.0, 0.01),
        "head.bias": (0.1, 0.0),
    }
    found = settings(model, optimizer)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name]), name


def test_custom_key_may_give_a_quantizer_decay() -> None:
    model = Net()
    cfg = dict(type="SGD", lr=0.1, weight_decay=0.01, paramwise_cfg=dict(custom_keys=dict(scale=dict(decay_mult=1.0))))
    assert settings(model, build_optimizer(model, cfg, quantizers=[model.scale]))["scale"] == (0.1, 0.01)


def test_frozen_parameters_are_in_and_stay() -> None:
    model = Net()
    model.conv.requires_grad_(False)
    optimizer = build_optimizer(model, dict(type="SGD", lr=0.1, weight_decay=0.1))
    before = model.conv.weight.clone()
    model.head(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model.conv.weight, before)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (dict(lr=0.1), "got one without 'type'"),
        (dict(type="SDG", lr=0.1), "Did you mean 'SGD'"),
        (dict(type="SGD", lr=0.1, momentun=0.9), "Did you mean 'momentum'"),
        (dict(type="SGD", lr="fast"), "optimizer.lr must be a number"),
        (dict(type="SGD", lr=0.1, paramwise_cfg=dict(norm_decay=0)), "Did you mean 'norm_decay_mult'"),
        (dict(type="SGD", lr=0.1, paramwise_cfg=dict(custom_keys=dict(haed=dict(lr_mult=1)))), "'haed' occurs in no"),
        (dict(type="SGD", lr=0.1, paramwise_cfg=dict(custom_keys=dict(head=dict(lr=1)))), "does not accept 'lr'"),
        (
            dict(type="SGD", lr=0.1, paramwise_cfg=dict(custom_keys=dict(head=0.1))),
            "must be a dict",
        ),
        (dict(type="SGD", lr=0.1, paramwise_cfg=dict(norm_decay_mult="none")), "norm_decay_mult must be a number"),
        (dict(type="SGD", lr=0.1, paramwise_cfg=5), "paramwise_cfg must be a dict"),
        (dict(type="SGD", lr=-1), "SGD rejects .* Invalid learning rate: -1"),
        (dict(type="SGD", lr=None), "optimizer.lr must be a number; got None"),
        (dict(type="SGD", lr=0.1, momentum=-1), "SGD rejects .* Invalid momentum value: -1"),
        (dict(type="Adam", lr=0.1, betas=5), "Adam rejects"),
        (dict(type="LBFGS", lr=0.1), "LBFGS computes the loss several times"),
        (dict(type="Muon", lr=0.1), "Muon rejects .* 2D parameters"),
    ],
)
def test_mistakes(cfg: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(Net(), cfg)


def test_number_as_text_is_understood() -> None:
    assert build_optimizer(Net(), dict(type="SGD", lr="1e-3")).param_groups[0]["lr"] == 0.001

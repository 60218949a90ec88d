"""Optimizer, learning rate and weight decay of quantizers and quantized weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.core.optim import StateError, build_optimizer, follow_bits, load_optimizer, quantizer_policy
from lbitcls.core.optimizer_pair import OptimizerPair, optimizer_name
from lbitcls.core.step import OptimizerStep, Precision
from lbitcls.settings.learning_rate import CosineAnnealingPolicy
from lbitcls.utils.errors import ConfigError

ADAM = dict(type="Adam", lr=1e-2, betas=(0.8, 0.9))
SGD = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=0.01)


class Net(nn.Module):
    """Two weights and what their quantizers would learn."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.rand((), dtype=torch.float64))
        self.first = nn.Linear(3, 3, dtype=torch.float64)
        self.last = nn.Linear(3, 2, dtype=torch.float64)
        self.clip = nn.Parameter(torch.rand(3, dtype=torch.float64))

    def forward(self, img: Tensor, gt_label: Tensor, return_loss: bool) -> dict[str, Tensor]:
        x = self.clip * self.first(img * self.scale)
        return {"loss": nn.functional.cross_entropy(self.last(x), gt_label)}

    @property
    def learned(self) -> list[nn.Parameter]:
        return [self.scale, self.clip]


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    img = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    return dict(img=img, gt_label=torch.arange(8) % 2)


def build(model: Net, paramwise: dict[str, Any], bits: Any = None, **settings: Any) -> torch.optim.Optimizer:
    return build_optimizer(model, {**SGD, **settings, "paramwise_cfg": paramwise}, model.learned, bits=bits)


def group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def test_a_pair_computes_what_both_formulas_say() -> None:
    """SGD with momentum and Adam, written out; clipped by the norm over all parameters."""
    model, copy = Net(), Net()
    step = OptimizerStep(
        build(model, dict(quantizers=dict(optimizer=ADAM))), torch.device("cpu"), grad_clip=dict(max_norm=0.1)
    )
    assert isinstance(step.optimizer, OptimizerPair)
    values = dict(copy.named_parameters())
    state = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in values.items()}
    for t in range(1, 4):
        step(model, batch(), 0, 1)
        loss = copy(**batch(), return_loss=True)["loss"]
        grads = dict(zip(values, torch.autograd.grad(loss, list(values.values()))))
        norm = sum(g.square().sum() for g in grads.values()).sqrt()
        with torch.no_grad():
            for name, p in values.items():
                g, (m, v) = grads[name] * min(1.0, 0.1 / (float(norm) + 1e-6)), state[name]
                if name in ("scale", "clip"):
                    m.mul_(0.8).add_(0.2 * g)
                    v.mul_(0.9).add_(0.1 * g * g)
                    p -= 1e-2 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-8)
                else:
                    m.copy_(g + 0.01 * p if t == 1 else 0.9 * m + g + 0.01 * p)
                    p -= 0.1 * m
        for name, p in model.named_parameters():
            torch.testing.assert_close(p, values[name], rtol=1e-12, atol=1e-13, msg=name)


def test_a_pair_saves_and_restores_both(caplog: pytest.LogCaptureFixture) -> None:
    paramwise = dict(quantizers=dict(optimizer=ADAM))
    models = Net(), Net()
    steps = [OptimizerStep(build(model, paramwise), torch.device("cpu")) for model in models]
    for _ in range(2):
        steps[0](models[0], batch(), 0, 1)
    models[1].load_state_dict(models[0].state_dict())
    steps[1].load_state_dict({"optimizer": deepcopy(steps[0].optimizer.state_dict())})
    for model, step in zip(models, steps):
        step(model, batch(), 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))
    assert not caplog.text
    assert [len(part.state) for part in steps[1].optimizer.parts.values()] == [4, 2]  # type: ignore[attr-defined]
    assert steps[1].optimizer.defaults["lr"] == 0.1


def test_a_pair_under_a_loss_scale() -> None:
    """GradScaler divides the gradients of both by the scale once, and skips both when one overflows."""
    model, plain = Net(), Net()
    paramwise = dict(quantizers=dict(optimizer=ADAM))
    scaled, reference = (OptimizerStep(build(m, paramwise), torch.device("cpu")) for m in (model, plain))
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(2):
        scaled(model, batch(), 0, 1)
        reference(plain, batch(), 0, 1)
    for a, b in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    before = [p.clone() for p in model.parameters()]
    scaled.scaler.scale(model(**batch(), return_loss=True)["loss"]).backward()
    assert model.clip.grad is not None
    model.clip.grad[0] = torch.inf
    scaled.scaler.step(scaled.optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before))
    assert scaled.precision == Precision()


def test_factors_use_groups_of_one_optimizer() -> None:
    model = Net()
    optimizer = build(
        model, dict(quantizers=dict(lr_mult=0.5, decay_mult=0.1), custom_keys=dict(clip=dict(lr_mult=3.0)))
    )
    assert type(optimizer) is torch.optim.SGD
    found = {name: group_of(optimizer, p) for name, p in model.named_parameters()}
    assert (found["scale"]["lr"], found["scale"]["weight_decay"]) == (0.05, pytest.approx(0.001))
    assert (found["clip"]["lr"], found["clip"]["weight_decay"]) == (pytest.approx(0.3), 0.0)
    assert (found["first.weight"]["lr"], found["first.weight"]["weight_decay"]) == (0.1, 0.01)
    assert not any("schedule" in group for group in optimizer.param_groups)


def test_a_policy_of_their_own_comes_with_groups_of_their_own_behind_the_others() -> None:
    model = Net()
    paramwise = dict(quantizers=dict(lr_config=dict(policy="CosineAnnealing", min_lr=0)))
    optimizer = build(model, paramwise)
    assert [group.get("schedule") for group in optimizer.param_groups] == [None, "quantizers"]
    assert optimizer.param_groups[1]["params"] == model.learned
    assert quantizer_policy({"paramwise_cfg": paramwise}) == CosineAnnealingPolicy(min_lr=0)
    assert quantizer_policy({"type": "SGD"}) is None


@pytest.mark.parametrize("given, decay", [({}, 0.0), (dict(weight_decay=0.3), 0.3)])
def test_their_own_optimizer_decays_only_if_it_says_so(given: dict[str, float], decay: float) -> None:
    model = Net()
    optimizer = build(model, dict(quantizers=dict(optimizer=dict(type="AdamW", lr=1e-3, **given))))
    assert group_of(optimizer, model.clip)["weight_decay"] == decay
    assert optimizer.param_groups[0]["lr"] == 0.1  # what the log calls lr


def test_decay_by_bits() -> None:
    model = Net()
    bits = {id(model.first.weight): 2, id(model.last.weight): 4}
    decays = {2: 3e-5, 3: 1e-4}
    optimizer = build(model, dict(decay_by_bits=decays, bias_decay_mult=0.0), bits)
    decay = {name: group_of(optimizer, p)["weight_decay"] for name, p in model.named_parameters()}
    expected = {"scale": 0.0, "clip": 0.0, "first.bias": 0.0, "last.bias": 0.0}
    assert decay == {**expected, "first.weight": 3e-5, "last.weight": 0.01}  # 4 bits: the optimizer's
    follow_bits(optimizer, {id(model.first.weight): 4, id(model.last.weight): 3})
    decay = {name: group_of(optimizer, p)["weight_decay"] for name, p in model.named_parameters()}
    assert decay == {**expected, "first.weight": 0.01, "last.weight": 1e-4}


def test_layers_of_one_group_change_their_bits_together() -> None:
    model = Net()
    first, last = id(model.first.weight), id(model.last.weight)
    optimizer = build(model, dict(decay_by_bits={2: 3e-5}), {first: 2, last: 2})
    with pytest.raises(ConfigError, match=r"must change together; now they have \[2, 3\]"):
        follow_bits(optimizer, {first: 2, last: 3})


PLACE = r"optimizer\.paramwise_cfg\.quantizers"


@pytest.mark.parametrize(
    ("paramwise", "message"),
    [
        (dict(quantizers=dict(lr=1)), f"{PLACE} does not accept 'lr'"),
        (dict(quantizers=dict(optimizer=dict(lr=1e-3))), rf"{PLACE}\.optimizer must be dict\(type="),
        (dict(quantizers=dict(optimizer=dict(type="Adm"))), rf"{PLACE}\.optimizer: torch.optim has no optimizer 'Adm'"),
        (dict(quantizers=dict(optimizer=dict(type="Adam", lr=-1))), rf"{PLACE}\.optimizer: Adam rejects"),
        (dict(quantizers=dict(optimizer=ADAM, lr_mult=2)), "leave out lr_mult, decay_mult"),
        (dict(quantizers=dict(optimizer=dict(ADAM, paramwise_cfg={}))), "accepts no paramwise_cfg"),
        (dict(quantizers=dict(lr_config=dict(policy="cosine"))), rf"{PLACE}\.lr_config: unknown policy 'cosine'"),
        (
            dict(decay_by_bits={9: 1e-4}),
            r"decay_by_bits must be a dict.* bits from 1 to 8, .*; got \{9: 0.0001\}",
        ),
        (dict(decay_by_bits={2: -1}), "decay_by_bits"),
        (dict(decay_by_bits={2: 1e-4}), "no quantized weights; leave it out"),
    ],
)
def test_mistakes(paramwise: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Net(), paramwise)


def test_a_model_without_learned_quantizers() -> None:
    cfg = {**SGD, "paramwise_cfg": dict(quantizers=dict(lr_mult=2.0))}
    with pytest.raises(ConfigError, match="no quantizer of this model learns a parameter"):
        build_optimizer(Net(), cfg)


def test_states_of_other_optimizers_are_refused() -> None:
    model = Net()
    one, pair = build(model, {}), build(model, dict(quantizers=dict(optimizer=ADAM)))
    assert (optimizer_name(one), optimizer_name(pair)) == ("SGD", "SGD with Adam for quantizers")
    with pytest.raises(StateError, match="no state of the optimizer 'main' of SGD with Adam"):
        load_optimizer(pair, one.state_dict())
    with pytest.raises(StateError, match="SGD does not accept the state"):
        load_optimizer(one, pair.state_dict())
    with pytest.raises(StateError, match="of parameters that SGD does not have"):
        load_optimizer(one, {**one.state_dict(), "state": {10**9: {"momentum_buffer": None}}})

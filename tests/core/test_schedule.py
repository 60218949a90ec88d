"""Learning rates against values worked out by hand from mmcv's formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lbitcls.core.schedule import build_schedule
from lbitcls.utils.errors import ConfigError


def rate(cfg: Any, iteration: int, base: float = 0.1, epoch_len: int = 10, max_epochs: int = 10) -> float:
    schedule = build_schedule(cfg, epoch_len=epoch_len, max_epochs=max_epochs)
    return schedule(base, iteration, iteration // epoch_len)


@pytest.mark.parametrize(
    ("cfg", "iteration", "expected"),
    [
        (None, 77, 0.1),
        (dict(policy="fixed"), 0, 0.1),
        (dict(policy="step", step=3), 29, 0.1),
        (dict(policy="step", step=3), 30, 0.01),
        (dict(policy="step", step=3, gamma=0.5), 90, 0.1 * 0.5**3),
        (dict(policy="step", step=[2, 5]), 19, 0.1),
        (dict(policy="step", step=[2, 5]), 20, 0.01),
        (dict(policy="step", step=[2, 5]), 99, 0.001),
        (dict(policy="step", step=[2, 5], min_lr=0.005), 99, 0.005),
        (dict(policy="step", step=[15], by_epoch=False), 15, 0.01),
        (dict(policy="exp", gamma=0.9), 20, 0.1 * 0.9**2),
        (dict(policy="poly", power=2.0), 50, 0.1 * 0.25),
        (dict(policy="poly", power=1.0, min_lr=0.02, by_epoch=False), 25, 0.08 * 0.75 + 0.02),
        (dict(policy="CosineAnnealing", min_lr=0), 50, 0.05),
        (dict(policy="CosineAnnealing", min_lr=0.01), 25, 0.01 + 0.045 * (math.cos(math.pi * 0.2) + 1)),
        (dict(policy="CosineAnnealing", min_lr_ratio=0.1, by_epoch=False), 25, 0.01 + 0.045 * (2**-0.5 + 1)),
        (dict(policy="fixed", warmup="constant", warmup_iters=4, warmup_ratio=0.25), 3, 0.025),
        (dict(policy="fixed", warmup="constant", warmup_iters=4, warmup_ratio=0.25), 4, 0.1),
        (dict(policy="fixed", warmup="linear", warmup_iters=4, warmup_ratio=0.2), 0, 0.02),
        (dict(policy="fixed", warmup="linear", warmup_iters=4, warmup_ratio=0.2), 1, 0.04),
        (dict(policy="fixed", warmup="exp", warmup_iters=4, warmup_ratio=0.0625), 2, 0.1 * 0.25),
        (dict(policy="step", step=[1], warmup="linear", warmup_iters=20, warmup_ratio=0.5), 10, 0.01 * 0.75),
        (
            dict(policy="fixed", warmup="linear", warmup_iters=2, warmup_ratio=0.5, warmup_by_epoch=True),
            *(10, 0.075),
        ),
        (dict(policy="CosineAnnealing", min_lr="1e-2"), 100, 0.01),
        (dict(policy="fixed", warmup="linear", warmup_iters="4", warmup_ratio="2e-1"), 0, 0.02),
    ],
)
def test_rate(cfg: Any, iteration: int, expected: float) -> None:
    assert rate(cfg, iteration) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("pct_start", [0.0, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("unit", ["iterations", "epochs"])
def test_one_cycle_is_torchs(strategy: Any, pct_start: float, unit: str) -> None:
    options: Any = dict(pct_start=pct_start, div_factor=8.0, final_div_factor=50.0, anneal_strategy=strategy)
    by_epoch = unit == "epochs"
    steps = 9 if by_epoch else 45
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=steps, **options)
    given = dict(policy="OneCycle", **options, **(dict(by_epoch=True) if by_epoch else {}))
    for step in range(steps):
        iteration = 5 * step if by_epoch else step
        own = rate(given, iteration, base=0.4, epoch_len=5, max_epochs=9)
        assert own == pytest.approx(theirs.get_last_lr()[0], rel=1e-12), step
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


@pytest.mark.parametrize("pct_start", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_one_cycle_of_a_short_run_is_finite(pct_start: float, length: int) -> None:
    """torch divides by zero where the rise has a single step."""
    rates = [
        rate(dict(policy="OneCycle", pct_start=pct_start), i, epoch_len=length, max_epochs=1) for i in range(length)
    ]
    assert all(0 < found <= 0.1 for found in rates)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (dict(warmup="linear", warmup_iters=3), "leave out warmup, and set pct_start"),
        (dict(pct_start=1.5), "pct_start must be a number from 0 to 1; got 1.5"),
        (dict(div_factor=0.5), "div_factor must be a number ≥ 1; got 0.5"),
        (dict(anneal_strategy="cosine"), "anneal_strategy must be one of 'cos', 'linear'; got 'cosine'"),
    ],
)
def test_mistakes_in_one_cycle(cfg: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rate(dict(policy="onecycle", **cfg), 0)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (dict(policy="cosin"), "Did you mean 'CosineAnnealing'|Known"),
        (dict(policy="stepp", step=3), "Did you mean 'step'"),
        (dict(step=3), "lr_config needs 'policy'"),
        (dict(policy="step"), "lr_config needs 'step'"),
        (dict(policy="step", step=[3, 0]), r"lr_config.step.1 must be an integer ≥ 1; got 0"),
        (dict(policy="step", step=3, gama=0.1), "Did you mean 'gamma'"),
        (dict(policy="CosineAnnealing"), "either min_lr or min_lr_ratio"),
        (dict(policy="fixed", warmup="linar", warmup_iters=3), "Did you mean 'linear'"),
        (dict(policy="fixed", warmup="linear"), "warmup_iters > 0"),
        (dict(policy="poly", power="two"), "lr_config.power must be a number"),
        (dict(policy="fixed", max_epochs=3), "lr_config does not accept 'max_epochs'"),
        (
            dict(policy="fixed", warmup="linear", warmup_iters="ten"),
            "warmup_iters must be a number .*; got the string 'ten'",
        ),
        (dict(policy="fixed", warmup="linear", warmup_iters=[5]), r"warmup_iters must be a number ≥ 0; got \[5\]"),
        (dict(policy="fixed", warmup="linear", warmup_iters=5, warmup_ratio="low"), "warmup_ratio must be a number"),
        (dict(policy="step", step=3.0), "step must be an integer ≥ 1 or a list of them; got 3.0"),
        (dict(policy="step", step=None), "step must be an integer ≥ 1 or a list of them; got None"),
        (dict(policy=["step"], step=3), "unknown policy"),
        (dict(policy="exp", gamma=[0.1]), "gamma must be a number"),
    ],
)
def test_mistakes(cfg: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rate(cfg, 0)


def test_policies_by_any_case() -> None:
    assert rate(dict(policy="Step", step=1), 10) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "policy",
    [dict(policy="CosineAnnealing", min_lr=0, warmup="linear", warmup_iters=12), dict(policy="OneCycle")],
    ids=["cosine", "one_cycle"],
)
@pytest.mark.parametrize("by_epoch", [True, False])
def test_each_restart_is_a_schedule_of_its_own(policy: dict[str, Any], by_epoch: bool) -> None:
    """A run of 10 epochs with restarts at 4 and 7 has the rates of runs of 4, 3 and 3 epochs, one after another."""
    cfg = {**policy, "by_epoch": by_epoch}
    for begin, end in ((0, 4), (4, 7), (7, 10)):
        for iteration in range(10 * begin, 10 * end):
            expected = rate(cfg, iteration - 10 * begin, max_epochs=end - begin)
            assert rate({**cfg, "restarts": [4, 7]}, iteration) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("restarts", "message"),
    [
        ([7, 4], r"restarts must be in ascending order; got \[7, 4\]"),
        ([4, 4], "ascending order"),
        ([0], "must be an integer ≥ 1; got 0"),
        ([10], "restarts: epoch 10, but the run has only 10 epochs"),
    ],
)
def test_mistakes_of_restarts(restarts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rate(dict(policy="fixed", restarts=restarts), 0)

"""Learning rates against values worked out by hand from mmcv's formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest

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

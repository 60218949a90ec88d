"""Random networks, trained until their classes separate: both engines agree with the model, or a refusal by name.

With `LBITCLS_NETWORKS=200-500`, `test_more_networks` draws these seeds; a failure names its seed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import random_networks as networks

FAST = (5, 46, 227, 448)
"""Seeds of small networks: constants along several axes, names of results, transposed, called twice, tokens."""
REFUSALS = ("cannot be written at opset", "cannot be exported for")
"""What a ConfigError may say: an operation that the opset lacks, a layer that the target does not take."""


def check(seed: int, folder: Path, may_fail_to_train: bool = False) -> None:
    network = networks.draw_network(seed)
    outcome = networks.run(network, folder)
    if outcome.accuracy <= networks.ACCURACY and may_fail_to_train:
        pytest.skip(f"{network} was not trained: {outcome.accuracy:.1%}")
    assert outcome.accuracy > networks.ACCURACY, f"{network} was not trained: {outcome.accuracy:.1%}"
    assert not outcome.faults, "\n".join([str(network), *outcome.faults])
    if outcome.refused:
        assert any(text in outcome.refused for text in REFUSALS), f"{network}\n{outcome.refused}"
        pytest.skip(f"refused: {outcome.refused}")


@pytest.mark.parametrize("seed", FAST)
def test_networks(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", (35, 175, 468, *range(100, 127)))
def test_each_structure_in_a_network(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path, may_fail_to_train=True)


def asked_for() -> range:
    first, _, last = os.environ.get("LBITCLS_NETWORKS", "0-0").partition("-")
    return range(int(first), int(last or int(first) + 1))


@pytest.mark.parametrize("seed", asked_for())
def test_more_networks(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path, may_fail_to_train=True)


def test_a_comparison_finds_what_is_wrong() -> None:
    """Scaled, shifted and permuted logits are distinguished from the effect of one or two ties."""
    draw = np.random.default_rng(0)
    single = draw.normal(size=(128, networks.CLASSES))
    double = single + draw.normal(0, 1e-7, single.shape)
    tied = single.copy()
    tied[:3] += 0.1
    assert networks.compare(tied, single, double) == ""
    wrong = (single * 1.05, single + np.eye(networks.CLASSES)[0] * 0.05, single[:, ::-1], single * np.nan)
    assert all(networks.compare(given, single, double) for given in wrong)

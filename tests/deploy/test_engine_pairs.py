"""Every place where a file can run, with every backbone family, method and bit width: a sample with all pairs.

`make engines` runs the whole matrix (docs/results/engines.md). Each pair of values of two of these four factors occurs
here at least once, in a sixteenth of the combinations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from lbitcls.deploy.targets.base import find_target
from lbitcls.registry import ENGINES, TARGETS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import engines  # type: ignore[import-not-found]

Case = tuple[str, str, str, int]  # place, family, method, bits
SLOW = ("VGG-11", "SqueezeNet 1.1")  # learn nothing in seconds, being without BatchNorm; `make engines` has them
FAMILIES = tuple(family for family in engines.FAMILIES if family not in SLOW)
FACTORS = (tuple(engines.PLACES), FAMILIES, engines.METHODS, engines.BITS)
IMAGES = 120  # at least 100 confirm a file
IN_INTEGERS = ("openvino", "executorch", "litert", "qonnx")
"""Engines that run all layers in integers and say so. ONNX Runtime, OpenCV and TVM convolve in float."""
SHORTCUTS = 3
"""Convolutions in shortcuts of ResNet-18, which learn a scale of their own for the input of `conv1`: OpenVINO then
hands it over in float, and may convolve it so."""
WITH_ZERO_POINTS = ("LSQPlus", "DSQ", "TorchQAT")


def pairs(case: Sequence[Any]) -> set[Any]:
    """Return the pairs of values of two factors in a case; each value is with its factor's number."""
    return set(combinations(enumerate(case), 2))


def cover(cases: Iterable[Case]) -> list[Case]:
    """Return those of the cases that contain all their pairs: each adds most of those still missing.

    Among equals it is one whose network, all but the place, is in the list; so there are few networks to train.
    """
    left = {case: pairs(case) for case in cases}
    chosen: list[Case] = []
    networks: set[Any] = set()
    while any(left.values()):
        best = max(left, key=lambda case: (len(left[case]), case[1:] in networks))
        covered = left[best].copy()
        chosen.append(best)
        networks.add(best[1:])
        for missing in left.values():
            missing -= covered
    return chosen


CASES = cover(product(*FACTORS))
NETWORKS = sorted(dict.fromkeys(case[1:] for case in CASES), key=lambda network: FAMILIES.index(network[0]))


def test_every_pair_of_values_occurs() -> None:
    wanted = {
        ((i, one), (j, other))
        for (i, first), (j, second) in combinations(enumerate(FACTORS), 2)
        for one, other in product(first, second)
    }
    assert {pair for case in CASES for pair in pairs(case)} == wanted
    assert len(CASES) <= 62 and len(NETWORKS) <= 40  # 56 and 35 at least: places by methods, families by methods


def test_every_target_and_engine_of_cpus_is_a_place() -> None:
    assert {target for target, _ in engines.PLACES.values()} == set(TARGETS.names())
    own = {engine for name in TARGETS.names() for engine in find_target(name).engines}
    others = {engine for _, chosen in engines.PLACES.values() for engine in chosen or ()}
    unusual = {"litert_builtin", "litert_reference"}  # other kernels for the files of `litert`
    assert own | others == set(ENGINES.names()) - unusual


def refusal_of(place: str, family: str, method: str, bits: int) -> str | None:
    """Return what the message says if a place refuses a network; None: it must accept it.

    TensorRT alone does: methods with zero points, and inputs of 8 bits without a sign, which are those behind a ReLU.
    """
    if place != "tensorrt":
        return None
    if method in WITH_ZERO_POINTS:
        return "its input has a zero point; train it with"
    return "int8 ends at 127; train it with" if bits == 8 and family != "LeNet-5" else None


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training that takes seconds."""
    monkeypatch.setattr(engines, "EPOCHS", {"float": 6, 8: 2, 4: 2, 2: 3})
    return


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: "-".join(map(str, network)))
def test_engines_compute_what_was_trained(network: tuple[str, str, int]) -> None:
    model, size = engines.quantized(*network), engines.FAMILIES[network[0]].size
    assert engines.accuracy(model, size) > 50  # 10 by chance: the classes are apart, so agreement says something
    for case in [case for case in CASES if case[1:] == network]:
        check(case, engines.measure(model, size, case[0], IMAGES))


def check(case: Case, found: dict[str, Any]) -> None:
    """Fail unless a file computes what was trained, in integers, or its target may refuse and says why."""
    expected = refusal_of(*case)
    if "refused" in found:
        assert expected is not None and expected in found["refused"], (case, found["refused"])
        assert "backbone." in found["refused"], (case, found["refused"])
        return
    place = case[0]
    rounded = find_target(engines.PLACES[place][0]).rounds_between_layers  # and adds in float, if layers have few bits
    rejected = place == "opencv" and found["reasons"]  # it computes some networks wrongly, and the certificate says so
    assert rounded or rejected or not found["reasons"], (case, found["reasons"])
    for one in found["certificates"]:
        least = 0 if rejected else 80 if rounded else 97
        assert one["images"] == IMAGES and one["agreement"] >= least, (case, one)
        if one["engine"] in IN_INTEGERS and not rounded:
            floats = SHORTCUTS if one["engine"] == "openvino" and case[1] == "ResNet-18" else 0
            assert 0 < one["layers"] - floats <= one["integer"] <= one["layers"], (case, one)

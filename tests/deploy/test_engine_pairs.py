"""Every target with every backbone family, method and bit width: a sample with all pairs, run by all their engines.

`make engines` runs the whole matrix with whole networks (docs/results/engines.md). Here, the networks are the first
stages of their families, so that the sample takes minutes, and each pair of values of two of the four factors occurs at
least once, in a tenth of the combinations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lbitcls.deploy.targets.base import find_target
from lbitcls.quant.layers import QuantLayer
from lbitcls.registry import ENGINES, TARGETS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import engines  # type: ignore[import-not-found]
from engines import Family

Case = tuple[str, str, str, int]  # target, family, method, bits
FAMILIES = {
    "LeNet-5": engines.FAMILIES["LeNet-5"],
    "ResNet-8": Family(dict(type="ResNetCIFAROptionA", depth=8), 64, 16),
    "ResNet-18": Family(dict(type="ResNet", depth=18, base_channels=16, num_stages=2, out_indices=(1,)), 32, 32),
    "MobileNetV2": Family(dict(type="MobileNetV2", widen_factor=0.5, out_indices=(2,)), 16, 32, every=5),
}
"""Families with BatchNorm, or of few layers: SqueezeNet and VGG learn nothing in seconds."""
FACTORS = (engines.TARGETS, tuple(FAMILIES), engines.METHODS, engines.BITS)
JUDGES = {"cpu": ("openvino", "onnxruntime", "opencv", "tvm")}
"""Engines of a target's files, if more than its own."""
IMAGES = 120  # at least 100 confirm a file
LEAST = {"opencv": 85}
"""Percentage of the images with the same class for engines whose certificate may reject a file: OpenCV computes some
networks wrongly (docs/engines_qonnx.md)."""
IN_INTEGERS = ("openvino", "executorch", "qonnx")
"""Engines that run all layers in integers and say so. ONNX Runtime, OpenCV and TVM convolve in float, and LiteRT does
before additions, if a layer has fewer than 8 bits."""
FLOAT_LAYERS = {("openvino", "ResNet-18"): 1}
"""The convolution in a shortcut learns a scale of its own for an input that it shares: OpenVINO may keep it float."""


def pairs(case: Sequence[Any]) -> set[Any]:
    """Return the pairs of values of two factors in a case; each value is with its factor's number."""
    return set(combinations(enumerate(case), 2))


def cover(cases: Iterable[Case]) -> list[Case]:
    """Return those of the cases that contain all their pairs: each adds most of those still missing.

    Among equals it is one whose network, all but the target, is in the list; so there are few networks to train.
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
NETWORKS = sorted(dict.fromkeys(case[1:] for case in CASES), key=lambda network: list(FAMILIES).index(network[0]))


def test_every_pair_of_values_occurs() -> None:
    wanted = {
        ((i, one), (j, other))
        for (i, first), (j, second) in combinations(enumerate(FACTORS), 2)
        for one, other in product(first, second)
    }
    assert {pair for case in CASES for pair in pairs(case)} == wanted
    assert len(CASES) <= 50 and len(NETWORKS) <= 36  # 42 and 28 at least: targets by methods, families by methods


def test_every_target_and_engine_of_cpus_is_in_the_sample() -> None:
    assert set(engines.TARGETS) == set(TARGETS.names())
    own = {engine for name in TARGETS.names() for engine in find_target(name).engines}
    unusual = {"litert_builtin", "litert_reference"}  # other kernels for the files of `litert`
    assert own | set(JUDGES["cpu"]) == set(ENGINES.names()) - unusual


def refusals(target: str, model: nn.Module) -> set[str]:
    """Return what the message says if a target refuses a network; empty: it must accept it.

    TensorRT alone does, whose int8 is symmetric: inputs with a zero point, and those that reach 255.
    """
    if target != "tensorrt":
        return set()
    inputs = [layer.input_quantizer for layer in model.modules() if isinstance(layer, QuantLayer)]
    grids = [quantizer.qparams() for quantizer in inputs if quantizer is not None]
    found = {"its input has a zero point; train it with" for grid in grids if int(grid.zero_point)}
    return found | {"int8 ends at 127; train it with" for grid in grids if not found and grid.quant_max > 127}


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small networks, trained in seconds."""
    monkeypatch.setattr(engines, "FAMILIES", FAMILIES)
    monkeypatch.setattr(engines, "EPOCHS", {"float": 6, 8: 2, 4: 2, 2: 4})
    for target, judges in JUDGES.items():
        monkeypatch.setitem(engines.PLACES, target, (target, judges))
    return


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: "-".join(map(str, network)))
def test_engines_compute_what_was_trained(network: tuple[str, str, int]) -> None:
    model, size = engines.quantized(*network), FAMILIES[network[0]].size
    assert engines.accuracy(model, size) > 50  # 10 by chance: the classes are apart, so agreement says something
    for case in [case for case in CASES if case[1:] == network]:
        check(case, refusals(case[0], model), engines.measure(model, size, case[0], IMAGES))


def check(case: Case, expected: set[str], found: dict[str, Any]) -> None:
    """Fail unless a file computes what was trained, in integers, or its target must refuse and says why."""
    if expected:
        assert all(reason in found["refused"] for reason in expected), (case, found)
        return
    assert "refused" not in found, (case, found)
    for one in found["certificates"]:
        assert one["images"] == IMAGES and one["agreement"] >= LEAST.get(one["engine"], 97), (case, one)
        assert one["passed"] or one["engine"] in LEAST, (case, one, found["reasons"])
        if one["engine"] in IN_INTEGERS:
            assert one["layers"] - FLOAT_LAYERS.get((one["engine"], case[1]), 0) <= one["integer"], (case, one)

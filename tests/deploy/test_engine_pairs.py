"""Every target with every backbone family, method and bit width: a sample of `make engines` that covers all pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lbitcls.registry import TARGETS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NETWORKS = (
    ("LeNet-5", "LSQ", 2),
    ("LeNet-5", "DoReFa", 4),
    ("ResNet-20", "LSQPlus", 4),
    ("ResNet-18", "UQ", 8),
    ("MobileNetV2", "PACT", 8),
    ("MobileNetV2", "TorchQAT", 4),
    ("SqueezeNet 1.1", "DSQ", 4),
)
REFUSED = {
    "tensorrt": ("zero point", "reach 255", "packed"),
}
"""Why a target may refuse a network: the message names the layers and says one of these."""


@pytest.fixture
def engines(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    import engines

    monkeypatch.setattr(engines, "_EPOCHS", {"float": 4, 8: 1, 4: 2, 2: 3})
    return engines


@pytest.mark.parametrize(("family", "method", "bits"), NETWORKS)
def test_each_engine_computes_what_was_trained(engines: Any, family: str, method: str, bits: int) -> None:
    model = engines.quantized(family, method, bits)
    assert engines.accuracy(model) > 80
    found = {target: engines.measure(model, target) for target in sorted(engines.TARGETS)}
    assert set(found) <= set(TARGETS.names())
    for target, result in found.items():
        if "refused" in result:
            assert any(reason in result["refused"] for reason in REFUSED.get(target, ())), result["refused"]
            continue
        assert result["reasons"] == [], (target, result["reasons"])
        for certificate in result["certificates"]:
            assert certificate["agreement"] >= 99, (target, certificate)
            if certificate["integer"] is not None:
                assert certificate["integer"] == certificate["layers"] > 0, (target, certificate)

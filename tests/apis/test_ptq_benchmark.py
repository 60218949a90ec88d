"""benchmarks/ptq.py: folds, configs and differences; the calibrations themselves take minutes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.settings.sections import read_settings

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
ptq: Any = pytest.importorskip("ptq")


@pytest.mark.parametrize("network", ptq.NETWORKS)
@pytest.mark.parametrize("kind", [kind for kind in ptq.KINDS if kind != "float"])
def test_a_row_has_its_bits_and_its_images(network: str, kind: str, tmp_path: Path) -> None:
    config = tmp_path / "row.py"
    config.write_text(ptq.config_text(network, kind, 3))
    settings = read_settings(config)
    assert settings.quant_transformer and settings.data.test and settings.data.calibration
    plan = build_mtransformer(settings.quant_transformer).plan(build_classifier(settings.model, False))
    bits = [(row.num_bit_w, row.num_bit_a) for row in plan.quantized]
    few = (4, int(kind[2]))
    assert bits[0] == bits[-1] == (8, 8) and set(bits[1:-1]) == {few}
    used, tested = set(settings.data.calibration["indices"]), set(settings.data.test["indices"])
    assert used == set(range(3, 1000, 5)) and used | tested == set(range(1000)) and not used & tested
    assert sorted(tested) == ptq.tested(3).tolist()
    learned = settings.calibration and settings.calibration.reconstruct
    name, steps = [*kind.split("_")[1:], "300"][:2]
    assert learned is None if name == "nearest" else learned and learned.rounding == name
    if learned and name == "qdrop":
        assert learned.steps == int(steps)


def result(right: np.ndarray, row: str) -> dict[str, Any]:
    top = 100 * float(right.mean())
    bits = np.packbits(right).tobytes().hex()
    return {"row": row, "top-1": top, "minutes": 2.0, "right": bits, "torch": "2", "machine": "one"}


def test_differences_count_each_image_once() -> None:
    rows = {}
    for fold in (0, 1):
        for kind, right in (("float", np.ones(800, bool)), ("4w8f_adaround", ptq.tested(fold) >= 500)):
            row = f"mobilenet_v2/{kind}/{fold}"
            rows[row] = result(right, row)
    mean, error, folds = ptq.difference(rows, "mobilenet_v2", "4w8f_adaround")
    assert mean == pytest.approx(-50) and folds == [0, 1]
    assert error == pytest.approx(100 * (0.25 / 999) ** 0.5)  # all 1,000 images, right or wrong in both folds alike
    assert ptq.difference(rows, "squeezenet1_1", "float") is None
    lines = ptq.page(rows).splitlines()
    assert "| MobileNetV2 | W4A8 | adaround | 2 | 50.00 | -50.00 ± 1.58 | -2.5 | 2 |" in lines
    assert max(map(len, lines)) <= 120 and "likely saw these" in ptq.page(rows)

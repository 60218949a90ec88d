"""benchmarks/accuracy_cifar10.py: the rows that compare gradients differ in nothing else, and their summary."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lbitcls.settings.sections import read_settings
from lbitcls.utils.config import Config


@pytest.fixture(scope="module")
def script(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy_cifar10", repo_root / "benchmarks" / "accuracy_cifar10.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _config(script: ModuleType, row: str, folder: Path) -> dict[str, Any]:
    file = folder / f"{row}.py"
    file.write_text(script.config_text(row, folder / "work", 1))
    return dict(Config.fromfile(file))


def test_gradient_rows_differ_in_gradients_and_seed_only(script: ModuleType, tmp_path: Path) -> None:
    plain = _config(script, "LSQ-4-short", tmp_path)
    assert len(script.GRADIENT_ROWS) == 9
    assert read_settings(plain).kernels.kind == "auto"
    for row, (gradients, seed) in script.GRADIENT_ROWS.items():
        config = _config(script, row, tmp_path)
        changed = {key for key in {*plain, *config} if plain.get(key) != config.get(key)}
        assert changed - {"seed"} == {"work_dir", "amp", "kernels", "compile"}
        assert dict(config["kernels"]) == {"kind": "integer", "gradients": gradients}
        assert (config["seed"], config.get("amp"), config["compile"]) == (seed, None, False)
        assert Path(config["work_dir"]) == tmp_path / "work" / row


def test_summary_over_seeds(script: ModuleType) -> None:
    rows = {"float": 88.0, "LSQ-4": 87.0, "LSQ-4-float32-0": 87.0, "LSQ-4-float32-1": 87.4}
    rows |= {"LSQ-4-bf16-0": 86.8, "LSQ-4-bf16-1": 87.4, "LSQ-4-int8-1": 87.0}
    results = {row: {"row": row, "top-1": top1, "epochs": 4, "minutes": 1.0} for row, top1 in rows.items()}
    page = script.table(results)
    assert page.count("LSQ-4") == 3 and "| `LSQ-4` | LSQ | W4A4 |" in page  # two texts and its own line
    assert [line for line in page.splitlines() if line.startswith(("| `float32", "| `bf16", "| `int8"))] == [
        "| `float32` | 0, 1 | 87.00, 87.40 | 87.20 | 0.28 | +0.00 |",
        "| `bf16` | 0, 1 | 86.80, 87.40 | 87.10 | 0.42 | -0.10 |",
        "| `int8` | 1 | 87.00 | 87.00 | – | **-0.40** |",
    ]


def test_no_summary_before_its_first_row(script: ModuleType) -> None:
    result = {"row": "float", "top-1": 88.0, "epochs": 5, "minutes": 1.0}
    assert "Gradients" not in script.table({"float": result})

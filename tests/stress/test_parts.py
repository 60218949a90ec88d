"""The parts `networks`, `flat` and `big` of the stress run: their own rules, and a small sample of each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from stress import flat, networks

ROW = {"memory": 500.0, "readers": 90.0, "objects": 300_000, "tensors": 400, "files": 20, "threads": 6, "processes": 2}


@pytest.mark.parametrize(
    ("name", "steps", "found"),
    [
        ("memory", 0.1, False),
        ("memory", 0.3, True),
        ("readers", 0.3, True),
        ("objects", 10, False),
        ("objects", 60, True),
        ("tensors", 1, True),
        ("files", 1, True),
        ("threads", 1, True),
        ("processes", -1, True),
    ],
)
def test_a_leak_is_noticed(name: str, steps: float, found: bool) -> None:
    """Growth at each of 50 validations, and a peak that passes, which is no leak."""
    rows = [ROW | {name: ROW[name] + steps * place} for place in range(50)]
    rows[20] = rows[20] | {"memory": 900.0, "files": 90}
    drifts, losses = flat.judged(rows)
    assert drifts[name] == pytest.approx(49 * steps)
    assert [loss.partition(":")[0] for loss in losses] == [name] * found


@pytest.mark.parametrize("family", ["residual", "graph"])
def test_a_case_is_a_function_of_its_number(family: str) -> None:
    case = networks.draw_case(family, 5)
    assert case == networks.draw_case(family, 5) != networks.draw_case(family, 6)
    images, labels = networks.batch_of(case, 64, 1)
    assert images.shape == (64, *case.shape) and labels.unique().numel() == case.classes


def test_a_refusal_names_the_layer_and_the_remedy_and_writes_nothing(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1)))
    good = "0.0: its weights need 16 bits; use opset 21"
    networks.check_refusal(good, model, tmp_path / "x.onnx")
    for wrong, what in (("0.0: it is wrong", "what to do"), ("some layer; use another", "neither a layer")):
        with pytest.raises(AssertionError, match=what):
            networks.check_refusal(wrong, model, tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(AssertionError, match="a file was written"):
        networks.check_refusal(good, model, tmp_path / "x.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "options", "rows"),
    [
        ("networks", ["--kinds", "graph", "residual", "--cases", "1", "2"], 2),
        ("flat", ["--scale", "0.1"], 2),
        ("big", ["--scale", "0.05"], 4),
    ],
)
def test_a_sample_has_no_losses(part: str, options: list[str], rows: int, repo_root: Path) -> None:
    command = [sys.executable, str(repo_root / "benchmarks" / "stress"), "--parts", part, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo_root)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) == rows + 1

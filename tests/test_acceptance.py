"""The shipped configs reach what their docstrings say, by the commands that these name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lbitcls.deploy.targets.cpu import CPU
from lbitcls.workflows.exporting import export_checkpoint
from lbitcls.workflows.testing import test_classifier as measure

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def tool(verb: str, *arguments: Any) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{verb}.py"), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def train(config: str, work_dir: Path, *arguments: Any) -> dict[str, Any]:
    """Trains by the command; what `summary.json` says."""
    tool("train", f"configs/{config}", "--work-dir", work_dir, *arguments)
    return json.loads((work_dir / "summary.json").read_text())


def top1(config: str, checkpoint: Path, out: Path, *arguments: Any) -> float:
    """Tests by the command; top-1 in percent."""
    tool("test", f"configs/{config}", checkpoint, "--out", out, *arguments)
    return json.loads(out.read_text())["top-1"]


def assert_faithful(config: str, exported: Path, expected: float, within: float, **data: str) -> None:
    """In both engines the exported model has the checkpoint's accuracy, in percent."""
    for engine in CPU.engines:
        given = measure(ROOT / "configs" / config, exported, engine=engine, threads=1, **data)["top-1"]
        assert given == pytest.approx(expected, abs=within), engine


def test_quickstart(work_dir: Path, tmp_path: Path) -> None:
    config = "quickstart/digits_lsq_4w4f.py"
    summary = train(config, work_dir)
    assert summary["float"]["top1"] >= 97
    assert summary["quantized"]["top1"] >= summary["float"]["top1"] - 1
    size = summary["model_size"]
    assert size["quantized_kib"] < size["float_kib"] / 6
    assert Path(summary["checkpoint"]) == work_dir / "best_top-1.pth"
    assert Path(summary["log"]).is_file()
    assert top1(config, work_dir / "best_top-1.pth", tmp_path / "q.json") == summary["quantized"]["top1"]
    integer = summary["integer"]
    assert abs(integer["top1"] - summary["quantized"]["top1"]) < 0.3, "one of 360 images may differ"
    assert_faithful(config, work_dir / "model.onnx", summary["quantized"]["top1"], 100 / 360)
    assert top1(config, work_dir / "model.onnx", tmp_path / "i.json") == integer["top1"]
    assert integer["size_kib"] < 0.35 * integer["float_size_kib"]
    assert integer["latency_ratio"] < 1


@pytest.mark.timeout(1500)
def test_mnist(work_dir: Path, tmp_path: Path, shared_data: Path) -> None:
    config = "mnist/lenet5_lsq_4w4f.py"
    summary = train(config, work_dir, "--data-root", shared_data)
    records = [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()]
    assert max(record["epoch"] for record in records) == 3
    assert summary["quantized"]["top1"] == max(record["top-1"] for record in records if record["mode"] == "val")
    tested = top1(config, work_dir / "best_top-1.pth", tmp_path / "m.json", "--data-root", shared_data)
    assert tested >= 98  # of the test set; training has validated on other images
    data = dict(data_root=str(shared_data))
    export_checkpoint(ROOT / "configs" / config, work_dir / "best_top-1.pth", work_dir / "model.onnx", **data)
    assert_faithful(config, work_dir / "model.onnx", tested, 0.1, **data)

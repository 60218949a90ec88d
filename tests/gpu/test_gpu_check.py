"""`benchmarks/gpu_check.sh`: its table, its exit codes, and, slow, all of its checks on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = str(BENCHMARKS / "gpu_check.sh")


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    return gpu_check


def script(*arguments: Any, limit: float = 200) -> subprocess.CompletedProcess[str]:
    call = ["bash", SCRIPT, *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(call, capture_output=True, text=True, timeout=limit, env=environment, check=False)


STANDINS = {
    "train": "import time; time.sleep(60)",
    "resume": "print('x'); raise ValueError('no resume')",
    "export": "import sys; write('needs onnx'); sys.exit(77)",
    "bf16": "write('top-1 99.0 %')",
    "fp16": "write('too low'); sys.exit(1)",
    "kernels": "import os; os.kill(os.getpid(), 11)",
}


def test_the_table_and_the_exit_code(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """Failed, hanging and killed checks do not stop the others."""
    for name in STANDINS:
        code = f"""
import json, sys, pathlib
def write(text): pathlib.Path({str(tmp_path)!r}, {name + ".json"!r}).write_text(json.dumps(dict(result=text)))
{STANDINS[name]}
"""
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(gpu_check, "command", lambda name, args: [sys.executable, str(tmp_path / f"{name}.py")])
    run = gpu_check.run
    monkeypatch.setattr(gpu_check, "run", lambda name, args, limit: run(name, args, 1.5 if name == "train" else limit))
    table = tmp_path / "table.json"
    given = ["--work", str(tmp_path), "--json", str(table), "--only", *STANDINS, "images"]
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *given])
    assert gpu_check.main() == 1
    rows = {row["check"]: row for row in json.loads(table.read_text())}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        **dict.fromkeys(("train", "resume", "fp16", "kernels"), "FAILED"),
        **dict.fromkeys(("export", "images"), "skipped"),
        "bf16": "ok",
    }
    assert rows["train"]["words"].startswith("stopped after") and rows["export"]["words"] == "needs onnx"
    assert rows["resume"]["words"] == "ValueError: no resume" and rows["fp16"]["words"] == "too low"
    output = capsys.readouterr().out
    assert "4 of 7 checks failed: train, resume, fp16, kernels" in output and "top-1 99.0 %" in output
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *given[:4], "--only", "bf16", "export"])
    assert gpu_check.main() == 0
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *given[:2], "--minutes", "0", "--only", "bf16"])
    assert gpu_check.main() == 1 and "not run: the time is up" in capsys.readouterr().out


def test_a_wrong_call_and_a_missing_gpu(tmp_path: Path) -> None:
    done = script("--wheels", tmp_path)
    assert done.returncode == 2 and "there are no .whl files" in done.stderr
    done = script("--device", "cpu", "--only", "nothing")
    assert done.returncode == 2 and "invalid choice: 'nothing'" in done.stderr
    if not torch.cuda.is_available():
        done = script("--only", "environment", "train")
        assert done.returncode == 1 and "finds no GPU; use --device cpu" in done.stdout
        assert "train: float" not in done.stdout  # nothing else can run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_checks_pass_on_a_cpu() -> None:
    """Without the checks whose ways other tests go on a CPU: compiled kernels, models and steps, DDP, images."""
    checks = ["environment", "train", "resume", "test", "export", "bf16", "fp16"]
    done = script("--device", "cpu", "--minutes", "9", "--only", *checks, limit=570)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "0 of 7 checks failed" in done.stdout

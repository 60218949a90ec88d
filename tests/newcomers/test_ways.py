"""Three newcomers' ways, each a script that runs in an empty folder with the package as a wheel installs it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from blocks import ROOT, environment, installed_package

HERE = Path(__file__).resolve().parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def walk(name: str, folder: Path, *arguments: Path) -> str:
    """Run a script in the empty `folder`; return what it printed."""
    env = environment(folder.parent, installed_package())
    if data := os.environ.get("LBITCLS_DATA"):
        env["LBITCLS_DATA"] = data
    folder.mkdir()
    done = subprocess.run(
        ["bash", str(HERE / name), *map(str, arguments)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said and str(ROOT / "lbitcls") not in said
    return done.stdout


def test_a_researcher_compares_methods_and_adds_one(tmp_path: Path) -> None:
    folder = tmp_path / "researcher"
    said = walk("researcher.sh", folder)
    assert said.count("advised: ") == 6
    table = (folder / "runs.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("|") and "W3A3" in line]
    assert {"DSQ_0", "DSQ_1", "LSQ_0", "LSQ_1", "PowerOfTwo_0"} <= {row.split("|")[1].strip() for row in rows}
    groups = [row for row in rows if "±" in row]
    assert len(groups) == 2 and all(any(method in row for row in groups) for method in ("DSQ", "LSQ")), table
    assert (folder / "work_dirs/PowerOfTwo_0/model_analysis.html").stat().st_size > 10_000
    assert not (folder / "work_dirs/slip/epoch_1.pth").exists()


def test_an_engineer_delivers_a_folder_of_photos(tmp_path: Path) -> None:
    folder = tmp_path / "engineer"
    said = walk("engineer.sh", folder)
    assert said.count("advised: ") >= 3
    run = folder / "work_dirs" / "photos"
    assert all((run / name).is_file() for name in ("model.onnx", "float.onnx", "summary.json", "results.png"))
    answer = (folder / "answer.txt").read_text(encoding="utf-8")
    assert answer.startswith("photos/ants/") and (": ants " in answer or ": bees " in answer)
    pictures = sorted((folder / "labeled").rglob("*.*"))
    assert len([path for path in pictures if path.suffix in (".png", ".jpg")]) == 30
    rows = (folder / "labeled" / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 31
    assert json.loads((folder / "times.json").read_text(encoding="utf-8"))
    assert (folder / "errors.png").is_file()


def test_a_lecturer_runs_a_notebook_as_shipped(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    folder = tmp_path / "lecturer"
    said = walk("lecturer.sh", folder, ROOT / "demo" / "classification.ipynb")
    assert "4 live tables" in said and said.count("advised: ") == 1
    assert (folder / "executed.ipynb").is_file()
    assert (folder / "course" / "work_dirs" / "two_bits" / "best_top-1.pth").is_file()


def test_the_guard_of_the_scripts_can_fail(tmp_path: Path) -> None:
    """`advised` fails for a command that succeeds, exits with another code, or says something else."""
    for command in ("true", "exit 1", "echo other; exit 2", "echo text Traceback; exit 2"):
        line = f'. "{HERE}/advice.sh"; advised text bash -c "{command}"'
        done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
        assert done.returncode == 1, command
    line = f'. "{HERE}/advice.sh"; advised text bash -c "echo text; exit 2"'
    assert subprocess.run(["bash", "-c", line], capture_output=True, check=False).returncode == 0

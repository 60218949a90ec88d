"""A sweep: one run for each combination, resumed by the same command, with the table of its runs."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lbitcls.commands.main import main
from lbitcls.utils.errors import ConfigError
from lbitcls.workflows.sweeping import plan_trials


@pytest.fixture
def quick(write_config: Any, monkeypatch: pytest.MonkeyPatch, repo_root: Path) -> Path:
    """A config of one epoch, which processes can import."""
    paths = [str(Path(__file__).resolve().parent), str(repo_root), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return write_config(total_epochs=1)


@pytest.mark.slow  # processes that import PyTorch
def test_each_combination_is_trained_once(quick: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "sweep"
    command = ["sweep", str(quick), "--work-dir", str(folder), "--jobs", "2", "--options", "optimizer.lr=0.1,0.01"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2 runs, 0 of them complete." in said and "lr=0.01: complete, top-1 " in said
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [next(iter(row.values())) for row in rows] == ["lr=0.1", "lr=0.01"]
    logs = [(folder / name / "log.jsonl").read_text().splitlines() for name in ("lr=0.1", "lr=0.01")]
    rates = [json.loads(lines[-2])["lr"] for lines in logs]
    assert rates[0] == pytest.approx(10 * rates[1])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")}
    (folder / "lr=0.01" / "summary.json").unlink()  # as if it had been interrupted before its end
    assert main(command) == 0
    assert "2 runs, 1 of them complete." in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth")}
    assert main([*command, "total_epochs=2"]) == 2
    assert "lr=0.1 has other options, optimizer.lr=0.1; name a new folder" in capsys.readouterr().err
    quick.write_text(quick.read_text().replace("total_epochs = 1", "total_epochs = 2"))
    assert main(command) == 2
    assert "contains a sweep of another config" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_fails_does_not_end_the_others(quick: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "sweep"
    options = ["--options", "optimizer.lr=1e30,0.1"]
    assert main(["sweep", str(quick), "--work-dir", str(folder), "--jobs", "2", *options]) == 1
    captured = capsys.readouterr()
    assert "lr=1e30: failed with exit code 1: " in captured.out and "lr=0.1: complete" in captured.out
    assert "1 of 2 runs failed: lr=1e30; output.txt in the folder of each tells why." in captured.err


def test_combinations_are_named_after_what_varies() -> None:
    options = ["seed=1", "model.backbone.width=4,8", "data.samples_per_gpu=[1,2],'a,b'", "other.width=x,y"]
    trials = plan_trials(options, Path("sweep"))
    assert len(trials) == 8 and trials[0].options == (
        "seed=1",
        "model.backbone.width=4",
        "data.samples_per_gpu=[1,2]",
        "other.width=x",
    )
    assert trials[0].folder == Path("sweep/model.backbone.width=4_samples_per_gpu=-1-2-_other.width=x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "a sweep needs an option with several values"),
        (["seed=1"], "a sweep needs an option with several values"),
        (["seed=1,,2"], "a value is empty, or given twice"),
        (["seed=1,1"], "a value is empty, or given twice"),
        (["seed=1,2", "seed=3"], "an option is given twice"),
        (["seed"], "an option must be key=value"),
        (["seed=1/2,1-2"], "two runs would have one folder, seed=1-2: seed=1/2 and seed=1-2"),
        ([f"a{n}=0,1,2,3,4,5,6,7,8,9" for n in range(12)], "make 1,000,000,000,000 runs"),
    ],
)
def test_wrong_options(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_trials(options, Path("x"))


@pytest.mark.parametrize("option", ["optimizer.lrr=1,2", "total_epochs=1,0"])
def test_every_combination_is_checked_first(quick: Path, option: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["sweep", str(quick), "--work-dir", str(tmp_path / "sweep"), "--options", option]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "sweep").exists()

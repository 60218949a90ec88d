"""The job scripts of docs/preemption.md: they restart exactly what the exit codes say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from blocks import ROOT
from pages import blocks_of

from lbitcls.core.guard import SIGNALS, TIME_LIMIT, Interrupted
from lbitcls.utils.errors import ConfigError, DataError, ResourceError, TrainingError

PAGE = "docs/preemption.md"
SAVED = sorted(Interrupted(number).exit_code for number in (*SIGNALS, TIME_LIMIT))
FAILED = [DataError.exit_code, TrainingError.exit_code, ConfigError.exit_code]


def block(target: str) -> str:
    return next(found.code for found in blocks_of(PAGE) if found.target == target)


@pytest.mark.parametrize("code", [0, *SAVED, *FAILED, ResourceError.exit_code, 128 + signal.SIGKILL])
def test_slurm(code: int, tmp_path: Path) -> None:
    """With commands in place of Slurm's: one that ends like the run, and one that notes what is put back."""
    (tmp_path / "srun").write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > requeued\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "train.sbatch").write_text(block("train.sbatch"))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    done = subprocess.run(["bash", "train.sbatch"], cwd=tmp_path, env=environment, check=False)
    restarts = code in (*SAVED, 128 + signal.SIGKILL)
    assert done.returncode == code and (tmp_path / "requeued").exists() is (restarts and code != 128 + signal.SIGINT)


def test_kubernetes() -> None:
    job = yaml.safe_load(block("train.yaml"))
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert job["kind"] == "Job" and job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert set(rules[0]["onExitCodes"]["values"]) == set(FAILED) and rules[0]["action"] == "FailJob"
    assert not set(rules[0]["onExitCodes"]["values"]) & {*SAVED, ResourceError.exit_code}


def test_the_table_of_exit_codes() -> None:
    """Each code that the classes have is in the table."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    told = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for code in row.split(",")}
    assert told == {0, 128 + signal.SIGKILL, ResourceError.exit_code, *FAILED, *SAVED}

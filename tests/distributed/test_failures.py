"""A process that dies, stops or hangs ends the job soon, with a line that names it, or restarts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent


def launch(cfg: dict[str, Any], script: str = "dist_train.sh", processes: int = 2, **variables: str) -> Any:
    """`tools/dist_train.sh CONFIG NUM_PROCS`: the config is written beside its work directory."""
    from lbitcls.utils.config import Config

    config = Path(f"{cfg['work_dir']}.py")
    Config({**cfg, "custom_imports": dict(imports=["scenes"])}).dump(config)
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "apis"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [str(ROOT / "tools" / script), str(config), str(processes)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(job: Any, seconds: float = 300) -> tuple[int, str, str]:
    try:
        output, errors = job.communicate(timeout=seconds)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    return job.returncode, output, errors


def test_a_killed_process_is_named(make_run: Any) -> None:
    code, _, errors = finish(launch(make_run("run", 2, custom_hooks=[dict(type="Accident", at=5, how="SIGKILL")])))
    assert code == 128 + signal.SIGKILL
    assert re.search(r"^process 1 \(pid \d+\) was killed by SIGKILL", errors, re.MULTILINE), errors
    assert "Traceback" not in errors and len(errors.splitlines()) < 6, errors


@pytest.mark.slow
def test_an_error_of_the_config_is_not_tried_again(make_run: Any) -> None:
    cfg = make_run("run", 1, parallel=dict(kind="fsdp", wrap=["Conv3d"]))
    code, _, errors = finish(launch(cfg, processes=1, MAX_RESTARTS="3"))
    assert code == 2 and errors.count("nor a class of modules, 'Conv3d'") == 1, errors
    assert "ended with exit code 2" in errors and "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("SIGSTOP", r"^process 1 on \S+ \(pid \d+\) has given no sign of life for 15 s"),
        (
            "sleep",
            r"^process 1 on \S+ \(pid \d+\) hangs: for 40 s it has used no .*, in before_iter \(.*scenes.py",
        ),
    ],
)
def test_a_hanging_process_ends_the_job_within_a_minute(make_run: Any, how: str, said: str) -> None:
    cfg = make_run("run", 2, custom_hooks=[dict(type="Accident", at=5, how=how)])
    job, stuck = launch(cfg), Path(cfg["work_dir"]) / "accident"
    while not stuck.exists() and job.poll() is None:
        time.sleep(0.1)
    began = time.monotonic()
    code, _, errors = finish(job)
    seconds = time.monotonic() - began
    print(how, seconds, errors)
    assert code == 1 and re.search(said, errors, re.MULTILINE), errors
    assert "Traceback" not in errors and len(errors.splitlines()) < 6, errors
    assert seconds < 90  # 45 s on an idle machine


@pytest.mark.slow
def test_a_slow_rank_is_no_hanging_one(make_run: Any) -> None:
    """Rank 0 works for 12 s, three times the limit, while the others wait in a collective."""
    hooks = [dict(type="Accident", at=5, how="work", rank=0)]
    cfg = make_run("run", 2, custom_hooks=hooks, dist_params=dict(hang_after=4))
    code, _, errors = finish(launch(cfg))
    assert code == 0, errors


@pytest.mark.slow
def test_a_restarted_job_ends_as_an_uninterrupted_one(make_run: Any) -> None:
    saved = dict(checkpoint_config=dict(interval=4, by_epoch=False))
    states = []
    for name, hooks in (("whole", []), ("killed", [dict(type="Accident", at=10, how="SIGKILL")])):
        cfg = {**make_run(name, 2, custom_hooks=hooks), **saved}
        code, output, errors = finish(launch(cfg, MAX_RESTARTS="1"))
        assert code == 0, errors
        states.append(torch.load(f"{cfg['work_dir']}/latest.pth", weights_only=True)["state_dict"])
    assert "Restart 1 after a failure: resuming from the last checkpoint" in output
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())

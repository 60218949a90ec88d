"""Runs that a cluster ends: saves in mid-epoch and in the background, signals, time limits, exit codes, heartbeat."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from calls import command
from test_resume import QUANT, content, end, same_run

from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError


def heartbeat(folder: Path | str) -> dict[str, Any]:
    return json.loads((Path(folder) / "heartbeat.json").read_text())


def checkpoints(folder: Path | str) -> set[str]:
    return {path.name for path in Path(folder).glob("*.pth")} - {"latest.pth", "best_top-1.pth", "best_float_top-1.pth"}


def dump(cfg: Config, path: Path, *hooks: dict[str, Any]) -> Path:
    Config({**cfg._cfg_dict, "custom_hooks": list(hooks)}).dump(path)
    return path


@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_saves_in_mid_epoch(make_config: Any, background: bool) -> None:
    """Beside those of epochs; the last two are kept, and each run that continues from one is the same."""
    save = dict(by_iter=5, background=background)
    sections = dict(QUANT, ema=dict(decay=0.9), checkpoint_config=save)
    whole, ended = make_config("whole", **sections), make_config("ended", **sections)
    train_classifier(whole)
    assert checkpoints(whole.work_dir) == {"epoch_1.pth", "epoch_2.pth", "iter_15.pth", "iter_20.pth"}
    end(ended, "after_iter", 18)
    assert content(ended.work_dir)["meta"]["iter"] == 15
    train_classifier(ended, resume=True)
    same_run(whole, ended)


def test_minutes(make_config: Any) -> None:
    """So few that each iteration is saved; an end of an epoch is saved once."""
    cfg = make_config(checkpoint_config=dict(minutes=1e-9, max_keep_ckpts=1))
    end(cfg, "before_iter", 16)
    assert checkpoints(cfg.work_dir) == {"epoch_1.pth", "iter_16.pth"}


def test_wrong_intervals(make_config: Any) -> None:
    with pytest.raises(ConfigError, match="by_iter adds to an interval in epochs"):
        train_classifier(make_config(checkpoint_config=dict(by_iter=5, by_epoch=False)))
    with pytest.raises(ConfigError, match=r"checkpoint_config\.minutes must be a number > 0"):
        train_classifier(make_config(checkpoint_config=dict(minutes=0)))


@pytest.mark.parametrize(
    ("moment", "at"),
    [("file", 3), pytest.param("latest", 1, marks=pytest.mark.slow), pytest.param("file", 0, marks=pytest.mark.slow)],
)
def test_killed_inside_the_writer(make_config: Any, run_tool: Any, tmp_path: Path, moment: str, at: int) -> None:
    """`kill -9` in the middle of a file, and before latest.pth is renamed."""
    sections = dict(checkpoint_config=dict(by_iter=5, max_keep_ckpts=1), workers=1)
    whole, killed = make_config("whole", **sections), make_config("killed", **sections)
    done = run_tool("train", dump(killed, tmp_path / "tiny.py", dict(type="KillWriter", at=at, moment=moment)))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert heartbeat(killed.work_dir)["state"] == "running"
    train_classifier(killed, resume=True)
    train_classifier(whole)
    same_run(whole, killed)
    assert checkpoints(whole.work_dir) == checkpoints(killed.work_dir)
    assert not list(Path(killed.work_dir).glob(".*.tmp")) and heartbeat(killed.work_dir)["state"] == "finished"


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_signals_of_schedulers_save_and_end(make_config: Any, write_config: Any, capsys: Any, name: str) -> None:
    whole, stopped = make_config("whole"), make_config("stopped")
    config = write_config(work="stopped", custom_hooks=[dict(type="EndAt", event="before_iter", at=16, how=name)])
    assert main(["train", str(config)]) == 128 + getattr(signal, name)
    assert f"stopped by the signal {name} in epoch 2 after 5 of 12 iterations" in capsys.readouterr().err
    assert heartbeat(stopped.work_dir)["state"] == "stopped" and content(stopped.work_dir)["meta"]["iter"] == 17
    train_classifier(stopped, resume=True)
    train_classifier(whole)
    same_run(whole, stopped)


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_job(make_config: Any, tmp_path: Path) -> None:
    """Slurm sends its warning to the processes that read data, too."""
    cfg = make_config(workers=2, total_epochs=500)
    call = command("tools/train.py", dump(cfg, tmp_path / "tiny.py"))
    process = subprocess.Popen(**call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (Path(cfg.work_dir) / "epoch_2.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 138, errors
    assert heartbeat(cfg.work_dir)["state"] == "stopped"


def test_a_time_limit_saves_in_time(make_config: Any, write_config: Any, capsys: Any) -> None:
    """Jobs with a limit, one after the other, do what one without does; the script is the same for the first."""
    whole, limited = make_config("whole"), make_config("limited")
    config = write_config(work="limited", custom_hooks=[dict(type="Slow", seconds=0.1)])
    code = main(["train", str(config), "--resume", "--time-limit", "4s"])
    output = capsys.readouterr()
    assert "starting from scratch" in output.out and code == 75
    assert "Interrupted: stopped by the time limit in epoch " in output.err and "use --resume" in output.err
    assert heartbeat(limited.work_dir)["state"] == "stopped"
    train_classifier(limited, resume=True)
    train_classifier(whole)
    same_run(whole, limited)


def test_a_time_limit_in_a_validation(make_config: Any, write_config: Any, capsys: Any) -> None:
    whole, limited = make_config("whole"), make_config("limited")
    config = write_config(work="limited", custom_hooks=[dict(type="Slow", seconds=0.0, validation=3.0)])
    assert main(["train", str(config), "--time-limit", "6s"]) == 75
    assert "in epoch 1 after 12 of 12 iterations" in capsys.readouterr().err
    train_classifier(limited, resume=True)
    train_classifier(whole)
    same_run(whole, limited)


@pytest.mark.parametrize("arguments", [["--time-limit", "soon"], ["--time-limit", "5m", "--find-lr"]])
def test_wrong_time_limits(write_config: Any, capsys: Any, arguments: list[str]) -> None:
    assert main(["train", str(write_config()), *arguments]) == 2
    assert "--time-limit" in capsys.readouterr().err


def test_exit_code_of_an_error(make_config: Any, write_config: Any, capsys: Any) -> None:
    config = write_config(custom_hooks=[dict(type="Fail", at=3)])
    assert main(["train", str(config)]) == 1
    assert heartbeat(make_config().work_dir)["state"] == "failed"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_save_and_stop_together(make_config: Any, tmp_path: Path) -> None:
    """`minutes` and the time limit are on rank 0's clock; what is resumed ends as the run without an end."""
    import torch
    from test_distributed import finish, launch

    sections = dict(checkpoint_config=dict(minutes=0.005), total_epochs=4)
    whole, limited = make_config("whole", **sections), make_config("limited", **sections)
    code, _, errors = finish(
        launch(dump(limited, tmp_path / "tiny.py", dict(type="Slow", seconds=1.0)), "--time-limit", "25s"), 200
    )
    assert code != 0 and errors.count("stopped by the time limit") == 1, errors[-2000:]
    assert heartbeat(limited.work_dir)["state"] == "stopped" and len(checkpoints(limited.work_dir)) >= 2
    assert finish(launch(dump(limited, tmp_path / "tiny.py"), "--resume"), 200)[0] == 0
    assert finish(launch(dump(whole, tmp_path / "whole.py")), 200)[0] == 0
    a, b = (torch.load(f"{cfg.work_dir}/latest.pth", weights_only=True) for cfg in (whole, limited))
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])

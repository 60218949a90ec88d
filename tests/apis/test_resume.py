"""A run that was ended and goes on must do, bit for bit, what it would have done."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError
from lbitcls.utils.lock import LOCK

QUANT = dict(
    quant_transformer=dict(
        type="mTransformerV2", quan_policy=dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    ),
    calibration=dict(epoch=1, num_batches=2),
)


def same(a: Any, b: Any, where: str = "") -> None:
    """Raise unless two checkpoints hold the same bits."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            same(*pair, f"{where}[{i}]")
    else:
        assert a == b, where


def content(folder: Path | str, name: str = "latest.pth") -> dict[str, Any]:
    checkpoint = torch.load(Path(folder) / name, weights_only=True)
    for name in ("config", "run"):  # name another work directory, another start
        checkpoint["meta"].pop(name)
    return checkpoint


def records(folder: Path | str) -> list[dict[str, Any]]:
    """The records of `log.jsonl` without what a clock or another process decides."""
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    clock = ("time", "data_time", "eta", "memory")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def same_run(a: Config, b: Config) -> None:
    same(content(a.work_dir), content(b.work_dir))
    same(content(a.work_dir, "best_top-1.pth"), content(b.work_dir, "best_top-1.pth"))
    assert records(a.work_dir) == records(b.work_dir)


def end(cfg: Config, event: str, at: int) -> None:
    """Train until the run is ended from a hook; what it leaves is what a killed process leaves."""
    from tiny_parts import Ended

    hooks = [*(cfg.get("custom_hooks") or ()), dict(type="EndAt", event=event, at=at, priority=99)]
    with contextlib.suppress(Ended):
        train_classifier(Config({**cfg._cfg_dict, "custom_hooks": hooks}))
        pytest.fail("the run was not ended")


SETTINGS = {
    "momentum": {},
    "adam, ema, clipped": dict(
        optimizer=dict(type="AdamW", lr=0.01),
        ema=dict(decay=0.9),
        optimizer_config=dict(grad_clip=dict(max_norm=1.0)),
    ),
    "accumulated, bf16": dict(optimizer_config=dict(cumulative_iters=5), amp="bf16"),
    "quantized later": QUANT,
    "quantized later, ema": dict(QUANT, ema=dict(decay=0.9)),
}
MOMENTS = [("after_iter", 4), ("after_epoch", 1), ("before_iter", 12), ("after_iter", 17), ("after_run", 24)]


@pytest.mark.parametrize(("setting", "by_epoch"), [(name, i % 2 == 0) for i, name in enumerate(SETTINGS)])
def test_resumed_run_is_bit_identical(make_config: Any, setting: str, by_epoch: bool) -> None:
    save = dict(interval=1) if by_epoch else dict(interval=7, by_epoch=False, max_keep_ckpts=2)
    sections = {**SETTINGS[setting], "checkpoint_config": save}
    whole, ended = make_config("whole", **sections), make_config("ended", **sections)
    train_classifier(whole)
    for event, at in MOMENTS[1:4:2] if setting == "momentum" else MOMENTS[3:4]:
        end(ended, event, at)
        train_classifier(ended, resume=True)
        same_run(whole, ended)


def test_every_moment_of_an_end(make_config: Any) -> None:
    """One run that is ended again and again, each time later."""
    sections = dict(ema=dict(decay=0.9), checkpoint_config=dict(interval=5, by_epoch=False))
    whole, ended = make_config("whole", **sections), make_config("ended", **sections)
    train_classifier(whole)
    for event, at in MOMENTS:
        cfg = Config({**ended._cfg_dict, "custom_hooks": [dict(type="EndAt", event=event, at=at, priority=99)]})
        with contextlib.suppress(BaseException):
            train_classifier(cfg, resume=True)
    train_classifier(ended, resume=True)
    same_run(whole, ended)


def test_finished_run_is_not_trained_again(make_config: Any) -> None:
    cfg = make_config()
    first = train_classifier(cfg)
    before = records(cfg.work_dir)
    again = train_classifier(cfg, resume=True)
    assert first["float"] == again["float"]
    assert records(cfg.work_dir) == before


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_process_goes_on(make_config: Any, run_tool: Any, tmp_path: Path, workers: int) -> None:
    """`kill -9` in mid-epoch, for real, with and without worker processes."""
    save = dict(interval=5, by_epoch=False)
    whole = make_config("whole", workers=workers, checkpoint_config=save)
    killed = make_config("killed", workers=workers, checkpoint_config=save)
    hooks = [dict(type="EndAt", event="before_iter", at=18, how="SIGKILL")]
    Config({**killed._cfg_dict, "custom_hooks": hooks}).dump(tmp_path / "tiny.py")
    done = run_tool("train", tmp_path / "tiny.py")
    assert done.returncode == -signal.SIGKILL, done.stderr
    train_classifier(killed, resume=True)
    train_classifier(whole)
    same_run(whole, killed)


def test_sigterm_saves_and_exits(make_config: Any, run_tool: Any, tmp_path: Path) -> None:
    """The iteration is finished, the position saved, the exit code says which signal."""
    whole, stopped = make_config("whole", workers=2), make_config("stopped", workers=2)
    hooks = [dict(type="EndAt", event="before_iter", at=16, how="SIGTERM")]
    Config({**stopped._cfg_dict, "custom_hooks": hooks}).dump(tmp_path / "tiny.py")
    done = run_tool("train", tmp_path / "tiny.py")
    assert done.returncode == 143, done.stderr
    assert "--resume" in done.stderr and "Traceback" not in done.stderr
    assert content(stopped.work_dir)["meta"]["iter"] == 17
    train_classifier(stopped, resume=True)
    train_classifier(whole)
    same_run(whole, stopped)
    assert not (Path(stopped.work_dir) / "interrupted.pth").exists()


@pytest.mark.parametrize(("event", "at", "iteration"), [("before_iter", 16, 17), ("after_epoch", 1, 12)])
def test_ctrl_c(make_config: Any, write_config: Any, capsys: Any, event: str, at: int, iteration: int) -> None:
    """In mid-epoch, and before the validation, which a run that goes on makes up for."""
    whole = make_config("whole")
    hooks = [dict(type="EndAt", event=event, at=at, how="SIGINT", priority=0)]
    config = write_config(work="stopped", custom_hooks=hooks)
    assert main(["train", str(config)]) == 130
    assert "To resume, use --resume" in capsys.readouterr().err
    stopped = make_config("stopped")
    assert content(stopped.work_dir)["meta"]["iter"] == iteration
    train_classifier(stopped, resume=True)
    train_classifier(whole)
    same_run(whole, stopped)
    same(content(whole.work_dir, "epoch_1.pth"), content(stopped.work_dir, "epoch_1.pth"))


def test_signal_to_the_process_group(make_config: Any, tmp_path: Path) -> None:
    """A terminal's Ctrl-C, or a scheduler's SIGTERM, reaches the worker processes too."""
    from calls import command

    cfg = make_config(workers=2, total_epochs=500)
    cfg.dump(tmp_path / "tiny.py")
    call = command("tools/train.py", tmp_path / "tiny.py")
    process = subprocess.Popen(**call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (Path(cfg.work_dir) / "epoch_2.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert (Path(cfg.work_dir) / "interrupted.pth").exists()


def test_unreadable_latest_falls_back(make_config: Any, capsys: Any) -> None:
    whole, cut = make_config("whole"), make_config("cut")
    train_classifier(whole)
    train_classifier(cut)
    folder = Path(cut.work_dir)
    (folder / "epoch_2.pth").write_bytes((folder / "epoch_2.pth").read_bytes()[:5000])  # latest.pth is the same file
    with pytest.raises(Exception, match=r"."):
        torch.load(folder / "latest.pth", weights_only=True)
    train_classifier(cut, resume=True)
    output = capsys.readouterr().out
    assert "WARNING" in output and "Trying the previous one" in output
    same_run(whole, cut)


def test_resume_of_nothing_starts_from_scratch(make_config: Any, capsys: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg, resume=True)
    assert "starting from scratch" in capsys.readouterr().out


def test_no_checkpoint_readable(make_config: Any) -> None:
    cfg = make_config()
    Path(cfg.work_dir).mkdir()
    (Path(cfg.work_dir) / "latest.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="cannot resume from any of"):
        train_classifier(cfg, resume=True)


def test_run_of_another_model(make_config: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    other = make_config(options={"model.backbone.width": 4, "model.head.in_channels": 8})
    other.resume_from = f"{cfg.work_dir}/latest.pth"
    with pytest.raises(CheckpointError, match=r"another model[\s\S]*backbone\.conv1\.weight \(8, 1, 3, 3\) for \(4"):
        train_classifier(other)


def test_weights_alone_are_no_run(make_config: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    cfg.resume_from = f"{cfg.work_dir}/best_top-1.pth"
    with pytest.raises(CheckpointError, match="--load-from"):
        train_classifier(cfg)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_best_weights_that_are_not_there_are_not_told_of(elsewhere: bool, make_config: Any, capsys: Any) -> None:
    """A run that goes on in another folder, or from a checkpoint before its best epoch."""
    cfg = make_config(total_epochs=3)
    train_classifier(cfg)
    further = make_config("new" if elsewhere else "work", total_epochs=4)
    best = json.loads((Path(cfg.work_dir) / "summary.json").read_text())["float"]["epoch"]
    further.resume_from = f"{cfg.work_dir}/epoch_{3 if elsewhere else 1}.pth"
    assert best > 1
    summary = train_classifier(further)
    assert "weights so far" in capsys.readouterr().out
    saved = torch.load(summary["float"]["file"], weights_only=True)["meta"]
    assert saved["epoch"] == summary["float"]["epoch"] and saved["top-1"] == summary["float"]["top1"]
    assert Path(summary["checkpoint"]).exists()


def test_seed_is_kept_by_the_run(make_config: Any) -> None:
    whole, ended = make_config("whole", seed=None), make_config("ended", seed=None)
    end(ended, "after_iter", 17)
    whole.seed = content(ended.work_dir)["meta"]["seed"]
    train_classifier(ended, resume=True)
    train_classifier(whole)
    same_run(whole, ended)


def test_other_batch_size_trains_on_the_rest_of_the_epoch(make_config: Any, capsys: Any) -> None:
    cfg = make_config(total_epochs=2, checkpoint_config=dict(interval=7, by_epoch=False))
    end(cfg, "after_iter", 10)
    cfg.data.samples_per_gpu = 64
    train_classifier(cfg, resume=True)
    assert "continuing after 896 of its 1437 images, at iteration 14" in capsys.readouterr().out
    assert content(cfg.work_dir)["meta"]["iter"] == 2 * 23
    assert content(cfg.work_dir)["meta"]["images"] == 2 * 1437


def test_a_job_that_starts_again_does_not_go_back_to_resume_from(make_config: Any, capsys: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    for epochs in (3, 4):
        job = make_config("job", total_epochs=epochs, resume_from=f"{cfg.work_dir}/epoch_1.pth")
        train_classifier(job, resume=True)
    assert f"Resuming from {job.work_dir}/latest.pth: epoch 4" in capsys.readouterr().out


def test_old_checkpoints_are_deleted(make_config: Any) -> None:
    cfg = make_config(total_epochs=4, checkpoint_config=dict(interval=1, max_keep_ckpts=2))
    train_classifier(cfg)
    names = {path.name for path in Path(cfg.work_dir).glob("*.pth")}
    assert names == {"epoch_3.pth", "epoch_4.pth", "latest.pth", "best_top-1.pth"}
    assert not list(Path(cfg.work_dir).glob(".*.tmp"))


def test_run_killed_before_its_first_checkpoint(make_config: Any, capsys: Any) -> None:
    """It starts from scratch on --resume, whatever another one left in its folder; that one can still go on."""
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    folder = Path(cfg.work_dir)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".log" and path.name != LOCK}
    cfg.seed = 4
    end(cfg, "after_iter", 2)
    assert "contained another run" in capsys.readouterr().out
    aside = folder / "earlier_1"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    train_classifier(cfg, resume=True)
    assert "starting from scratch" in capsys.readouterr().out
    assert content(folder)["meta"]["seed"] == 4
    assert not (folder / "earlier_2").exists()
    cfg.seed, cfg.work_dir, cfg.total_epochs = 3, str(aside), 2
    train_classifier(cfg, resume=True)
    assert content(aside)["meta"]["epoch"] == 2


def test_checkpoints_of_another_run_are_passed_over_and_kept(make_config: Any, capsys: Any) -> None:
    """What a run leaves that was killed while it moved another one's files."""
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    folder = Path(cfg.work_dir)
    other = (folder / "epoch_1.pth").read_bytes()
    (folder / "run.txt").write_text("20260101_120000_0123abcd\n")
    train_classifier(cfg, resume=True)
    output = capsys.readouterr().out
    assert "to an earlier run" in output and "starting from scratch" in output and "contained another run" in output
    assert (folder / "earlier_1" / "epoch_1.pth").read_bytes() == other


def test_config_in_the_work_directory_stays_as_written(write_config: Any, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    config = write_config(name="work/tiny.py", total_epochs=1)
    text = "# a comment\n" + config.read_text()
    config.write_text(text)
    assert main(["train", str(config)]) == 0
    assert main(["train", str(config), "--options", "total_epochs=2"]) == 0
    assert config.read_text() == text
    assert (tmp_path / "work" / "earlier_1" / "epoch_1.pth").exists()


@pytest.mark.parametrize("failure", ["optimizer", "first batch", "hook"])
def test_failure_before_the_first_step_changes_nothing(make_config: Any, failure: str) -> None:
    from lbitcls.utils.errors import LbitclsError

    cfg = make_config(total_epochs=1, log_config=dict(hooks=[dict(type="TensorboardLoggerHook")], pictures=False))
    train_classifier(cfg)
    folder = Path(cfg.work_dir)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}
    wrong = copy.deepcopy(cfg)
    if failure == "optimizer":
        wrong.optimizer = dict(type="SparseAdam", lr=0.1)
    elif failure == "hook":
        wrong.custom_hooks = [dict(type="Fail", at=0)]
    else:
        wrong.data.train.pipeline = [dict(type="Resize", size=(1, 1)), *wrong.data.train.pipeline]
        wrong.data.samples_per_gpu = 1
    with pytest.raises(LbitclsError):
        train_classifier(wrong)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path in before}
    assert after == before
    cfg.total_epochs = 2
    train_classifier(cfg, resume=True)
    assert content(folder)["meta"]["epoch"] == 2 and not (folder / "earlier_1").exists()


def test_finished_run_says_so(make_config: Any, capsys: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    capsys.readouterr()
    train_classifier(cfg, resume=True)
    output = capsys.readouterr().out
    assert "is complete, with 1 of 1 epochs" in output and "raise total_epochs" in output
    assert "Resuming from" not in output


@pytest.mark.parametrize(("event", "at"), [("before_epoch", 12), ("before_iter", 12), ("before_iter", 13)])
def test_resume_at_the_calibration(make_config: Any, event: str, at: int) -> None:
    """From exactly before the quantizers come on (before or after they did in the run that was killed), and after."""
    sections = dict(QUANT, ema=dict(decay=0.9), checkpoint_config=dict(interval=1, by_epoch=False, max_keep_ckpts=2))
    whole, ended = make_config("whole", **sections), make_config("ended", **sections)
    train_classifier(whole)
    end(ended, event, at)
    saved = content(ended.work_dir)
    assert saved["meta"]["iter"] == at
    assert saved["hooks"]["CalibrationHook"]["done"] is (at > 12)
    train_classifier(ended, resume=True)
    same_run(whole, ended)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_at_once_killed(make_config: Any, run_tool: Any, compiler: None, tmp_path: Path) -> None:
    """In the float phase, soon after the quantizers came on, and in the last epoch; processes of their own."""
    sections = dict(
        QUANT,
        **dict(total_epochs=3, ema=dict(decay=0.9), amp="bf16", compile=True, channels_last=True),
        optimizer_config=dict(cumulative_iters=5, grad_clip=dict(max_norm=5.0)),
        checkpoint_config=dict(interval=4, by_epoch=False, max_keep_ckpts=2),
    )
    whole = make_config("whole", **sections)
    whole.dump(tmp_path / "whole.py")
    assert run_tool("train", tmp_path / "whole.py", timeout=300).returncode == 0
    for at in (11, 17, 27):
        killed = make_config(f"killed_{at}", **sections)
        killed.dump(tmp_path / "killed.py")
        hooks = [dict(type="EndAt", event="before_iter", at=at, how="SIGKILL")]
        Config({**killed._cfg_dict, "custom_hooks": hooks}).dump(tmp_path / "killing.py")
        assert run_tool("train", tmp_path / "killing.py", timeout=300).returncode == -signal.SIGKILL
        done = run_tool("train", tmp_path / "killed.py", "--resume", timeout=300)
        assert done.returncode == 0 and "Resuming from" in done.stdout, done.stderr
        same_run(whole, killed)

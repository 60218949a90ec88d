"""Work directories that a power failure or a failing disk leaves: what is lost is told, and nothing starts anew."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import content, end, records, same_run

from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.utils import files


def fail(number: int) -> Any:
    """A function that fails as the system does, with the name of what it was given."""

    def call(*given: Any, **named: Any) -> Any:
        raise OSError(number, os.strerror(number), str(given[0]) if given else None)

    return call


def test_lost_records_are_told(make_config: Any, capsys: Any) -> None:
    """And a run that continues in another folder, whose log starts there, has lost none."""
    cfg = make_config()
    end(cfg, "after_iter", 20)
    log = Path(cfg.work_dir) / "log.jsonl"
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[-1])
    train_classifier(cfg, resume=True)
    assert f"{log} has lost 4 of the 4 records before this point" in capsys.readouterr().out
    assert [record["epoch"] for record in records(cfg.work_dir)] == [2, 2, 2, 2]
    other = make_config("other", resume_from=f"{cfg.work_dir}/epoch_1.pth")
    train_classifier(other)
    assert "has lost" not in capsys.readouterr().out


def test_damaged_best_weights_are_not_told_of_as_the_result(make_config: Any, capsys: Any) -> None:
    """Only a value differs, which reading the metadata alone does not notice."""
    whole, cut = make_config("whole"), make_config("cut")
    train_classifier(whole)
    end(cut, "after_iter", 20)
    path = Path(cut.work_dir) / "best_top-1.pth"
    value = content(cut.work_dir, path.name)["state_dict"]["head.fc.weight"].numpy().tobytes()
    assert value in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(value, torch.zeros(16 * 10).numpy().tobytes()))
    train_classifier(cut, resume=True)
    assert f"are no longer in {path}" in capsys.readouterr().out
    same_run(whole, cut)


def test_a_folder_that_cannot_be_read_does_not_start_anew(
    make_config: Any, write_config: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, config = make_config(total_epochs=1), write_config(total_epochs=2)
    train_classifier(cfg)
    before = (Path(cfg.work_dir) / "epoch_1.pth").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("lbitcls.core.run_files.os.listdir", fail(errno.EIO))
        assert main(["train", str(config), "--resume"]) == 71
    assert capsys.readouterr().err.startswith(f"ResourceError: {cfg.work_dir} cannot be written or read: the disk")
    assert (Path(cfg.work_dir) / "epoch_1.pth").read_bytes() == before
    assert main(["train", str(config), "--resume"]) == 0
    assert "epoch 2, iteration 0" in capsys.readouterr().out


def test_a_full_disk_at_the_start_is_no_mistake_of_the_command(
    make_config: Any, write_config: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config()
    monkeypatch.setattr(files, "new_temporary", fail(errno.ENOSPC))
    assert main(["train", str(config)]) == 71
    said = capsys.readouterr().err
    assert said.startswith("ResourceError: ") and said.count("\n") == 1 and make_config().work_dir in said
    with pytest.raises(Exception, match=r"out\.json cannot be written or read: the disk is full"):
        files.check_writable("out.json", "--out")


def test_tensorboard_that_cannot_be_written_ends_nothing(
    make_config: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the run, nor TensorBoard's own thread with a traceback."""
    from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

    hooks = [dict(type="TensorboardLoggerHook")]
    cfg = make_config(total_epochs=1, log_config=dict(interval=5, hooks=hooks, pictures=False))
    monkeypatch.setattr(LocalFileSystem, "write", lambda self, *given: fail(errno.EIO)())
    train_classifier(cfg)
    said = capsys.readouterr()
    assert said.out.count("tf_logs cannot be written: Input/output error; continuing without it") == 1
    assert said.err == "" and content(cfg.work_dir)["meta"]["epoch"] == 1


def test_a_run_killed_after_its_last_checkpoint_does_not_seem_to_hang(make_config: Any) -> None:
    """Its heartbeat says that it is running, to a watchdog, until the next start finds that nothing is left to do."""
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    path = Path(cfg.work_dir) / "heartbeat.json"
    path.write_text(path.read_text().replace("finished", "running"))
    train_classifier(cfg, resume=True)
    assert json.loads(path.read_text())["state"] == "finished"

"""Runs that meet each other in a work directory, a machine that gives out, and notes that were damaged."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from calls import command
from test_distributed import finish, launch
from test_resume import end, same_run

from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError, ResourceError


@contextlib.contextmanager
def running(config: Path, folder: Path) -> Any:
    """A process that trains, from its first checkpoint on; killed at the end."""
    process = subprocess.Popen(**command("tools/train.py", config), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "latest.pth").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_is_refused_and_a_killed_ones_place_is_taken(
    make_config: Any, run_tool: Any, tmp_path: Path, capsys: Any
) -> None:
    """Whatever it asks for; what only adds files of its own is let in."""
    cfg = make_config(total_epochs=3000, workers=1, checkpoint_config=dict(interval=1, max_keep_ckpts=1))
    folder = Path(cfg.work_dir)
    cfg.dump(tmp_path / "tiny.py")
    with running(tmp_path / "tiny.py", folder) as process:
        logs = sorted(folder.glob("*.log"))
        for arguments in ((), ("--resume",), ("--seed", "4"), ("--resume-from", str(folder / "latest.pth"))):
            assert main(["train", str(tmp_path / "tiny.py"), *arguments]) == 1
            said = capsys.readouterr().err
            assert said.startswith(f"TrainingError: another run is at work in {folder}: process {process.pid} on")
            assert socket.gethostname() in said and "--work-dir" in said
        assert process.poll() is None and sorted(folder.glob("*.log")) == logs and not (folder / "earlier_1").exists()
        best, out = str(folder / "best_top-1.pth"), str(tmp_path / "metrics.json")
        assert main(["test", str(tmp_path / "tiny.py"), best, "--out", out]) == 0
        assert main(["visualize", "errors", str(tmp_path / "tiny.py"), best]) in (0, 2)
        assert (
            main(
                ["train", str(tmp_path / "tiny.py"), "--work-dir", str(tmp_path / "w2"), "--options", "total_epochs=1"]
            )
            == 0
        )
    capsys.readouterr()
    done = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["epoch"]
    more = ["--resume", "--options", f"total_epochs={done + 1}"]
    assert main(["train", str(tmp_path / "tiny.py"), *more]) == 0
    said = capsys.readouterr().out
    assert f"process {process.pid} on" in said and "its lock is taken over" in said and "Resuming from" in said


@pytest.mark.slow
def test_all_processes_of_a_refused_run_end_alike(make_config: Any, tmp_path: Path) -> None:
    from lbitcls.utils.lock import RunLock

    cfg = make_config()
    cfg.dump(tmp_path / "tiny.py")
    with RunLock(Path(cfg.work_dir)) as lock:
        assert lock.take() is None
        process = launch(tmp_path / "tiny.py")
        code, _, errors = finish(process, timeout=120)
        assert code != 0 and errors.count(f"TrainingError: another run is at work in {cfg.work_dir}") == 1
        assert f"process {os.getpid()} on" in errors
        assert not list(Path(cfg.work_dir).glob("*.log"))
    code, _, errors = finish(launch(tmp_path / "tiny.py", "--options", "total_epochs=1"), timeout=150)
    assert code == 0, errors[-2000:]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from lbitcls.commands.main import main
sys.exit(main(["train", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("limit", [200, 12_000])
def test_a_file_size_limit_ends_the_run_with_a_message(make_config: Any, tmp_path: Path, limit: int) -> None:
    """As a full disk does; of the config's copy and of the first checkpoint. The run goes on when there is room."""
    cfg, whole = make_config(), make_config("whole")
    cfg.dump(tmp_path / "tiny.py")
    limited = command("-c", LIMITED, limit, tmp_path / "tiny.py")
    limited["env"].pop("COVERAGE_PROCESS_CONFIG", None)  # the limit holds for a measurement's file, too
    done = subprocess.run(**limited, capture_output=True, check=False)
    assert done.returncode == 71 and "Traceback" not in done.stderr, done.stderr
    assert "ResourceError: " in done.stderr and "the limit on file sizes is reached. Raise it" in done.stderr
    assert ("No checkpoint of the run was saved" in done.stderr) is (limit > 1000)
    assert not list(Path(cfg.work_dir).glob("**/*.tmp"))
    train_classifier(cfg, resume=True)
    train_classifier(whole)
    same_run(whole, cfg)


def test_a_disk_that_fills_up_later(make_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """In the second epoch; the message says so, and what was saved before is gone on from."""
    import errno

    from lbitcls.utils import checkpoint

    cfg, whole = make_config(), make_config("whole")
    written = checkpoint._write

    def write(content: dict[str, Any], path: Path) -> None:
        if content["meta"]["epoch"] == 2:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        written(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", write)
        with pytest.raises(ResourceError, match=r"work/best_top-1\.pth cannot .*: the disk is full.*--resume"):
            train_classifier(cfg)
    (log,) = Path(cfg.work_dir).glob("*.log")
    assert "ERROR - ResourceError" in log.read_text()
    assert not list(Path(cfg.work_dir).glob(".*.tmp"))
    train_classifier(cfg, resume=True)
    train_classifier(whole)
    same_run(whole, cfg)


def test_a_log_that_cannot_be_written_ends_nothing(make_config: Any, tmp_path: Path) -> None:
    """Standard output on a full device: said once; the run is complete."""
    cfg = make_config(total_epochs=1)
    cfg.dump(tmp_path / "tiny.py")
    with open("/dev/full", "w") as full:
        call = command("tools/train.py", tmp_path / "tiny.py")
        done = subprocess.run(**call, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "standard output cannot be written: No space left on device; continuing without it.\n"
    assert (Path(cfg.work_dir) / "summary.json").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_reader_is_told_of_and_the_run_goes_on(make_config: Any, workers: int) -> None:
    """The system kills one where memory runs out."""
    save = dict(interval=5, by_epoch=False)
    cfg, whole = make_config(workers=workers, checkpoint_config=save), make_config("whole", checkpoint_config=save)
    whole.data.train.pipeline = cfg.data.train.pipeline
    killing = Config({**cfg._cfg_dict, "custom_hooks": [dict(type="KillReader", at=17)]})
    with pytest.raises(ResourceError, match=r"a process that reads data .* killed by the system .*--resume"):
        train_classifier(killing)
    train_classifier(cfg, resume=True)
    train_classifier(whole)
    same_run(whole, cfg)


DAMAGE = {
    "null": lambda text: b"null\n" + text,
    "foreign bytes": lambda text: text.replace(b"\n", b"\n\xff\xfe\x00\n", 1),
    "records of something else": lambda text: (
        b'{"epoch": 1}\n[]\n3\n{"mode": "train", "epoch": "1", "iter": 2}\n' + text
    ),
    "nested": lambda text: text + b"[" * 100_000 + b"\n",
    "\\r\\n": lambda text: text.replace(b"\n", b"\r\n"),
    "cut": lambda text: text + b'{"mode": "tr',
    "empty lines": lambda text: b"\n\n" + text,
}
SILENT = ("\\r\\n", "cut", "empty lines")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_file_blocks_nothing(make_config: Any, capsys: Any, damage: str) -> None:
    cfg, whole = make_config(), make_config("whole")
    train_classifier(whole)
    end(cfg, "after_epoch", 1)
    log = Path(cfg.work_dir) / "log.jsonl"
    before = log.read_bytes()
    log.write_bytes(DAMAGE[damage](before))
    capsys.readouterr()
    train_classifier(cfg, resume=True)
    same_run(whole, cfg)
    assert len(log.read_bytes().splitlines()) == 2 * len(before.splitlines()) and b"\r" not in log.read_bytes()
    aside = Path(cfg.work_dir) / "log_unreadable.txt"
    said = capsys.readouterr().out
    assert aside.exists() is ("that are not records of a run" in said) is (damage not in SILENT)
    if aside.exists():
        assert set(aside.read_bytes().splitlines()) == set(DAMAGE[damage](before).splitlines()) - set(
            before.splitlines()
        )


@pytest.mark.parametrize(
    "note", [b"", b"\n", b"\xff\xfe\x00", b"garbage\n", b"null", b"20260101_120000_0123abcd\nmore"]
)
def test_a_damaged_note_of_the_run_leaves_it_to_the_checkpoints(make_config: Any, capsys: Any, note: bytes) -> None:
    cfg, whole = make_config(), make_config("whole")
    end(cfg, "after_epoch", 2)
    folder = Path(cfg.work_dir)
    name = (folder / "run.txt").read_text()
    (folder / "run.txt").write_bytes(note)
    capsys.readouterr()
    train_classifier(cfg, resume=True)
    said = capsys.readouterr().out
    assert "does not name a run" in said and "Resuming from" in said and "contained another run" not in said
    assert (folder / "run.txt").read_text() == name and not (folder / "earlier_1").exists()
    train_classifier(whole)
    same_run(whole, cfg)


@pytest.mark.timeout(120)
def test_no_run_waits_at_a_pipe(make_config: Any, capsys: Any) -> None:
    cfg = make_config()
    end(cfg, "after_epoch", 2)
    folder = Path(cfg.work_dir)
    for name in ("run.txt", "log.jsonl"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    with pytest.raises(OSError, match="not a regular file but a named pipe"):
        train_classifier(cfg, resume=True)
    assert "does not name a run" in capsys.readouterr().out and (folder / "run.txt").is_file()
    (folder / "log.jsonl").unlink()
    assert "checkpoint" in train_classifier(cfg, resume=True)


def test_a_missing_note_does_not_hand_a_run_to_another(make_config: Any) -> None:
    """A new run puts the files of the one before aside, note or not, and that one can go on there."""
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    folder = Path(cfg.work_dir)
    name = (folder / "run.txt").read_text()
    (folder / "run.txt").write_text("")
    train_classifier(cfg)
    aside = folder / "earlier_1"
    assert {"log.jsonl", "latest.pth", "run.txt", "summary.json"} <= {path.name for path in aside.iterdir()}
    assert (aside / "run.txt").read_text() == name != (folder / "run.txt").read_text()


COUNTS = [
    *("total_epochs", "evaluation.interval", "evaluation.start", "checkpoint_config.interval", "seed"),
    *("checkpoint_config.max_keep_ckpts", "log_config.interval", "lr_config.warmup_iters", "num_threads"),
    *("data.samples_per_gpu", "data.workers_per_gpu", "optimizer_config.cumulative_iters"),
]


@pytest.mark.parametrize("value", [10**30, 10**5000], ids=["1e30", "1e5000"])
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.timeout(60)
def test_a_count_beyond_all_bounds_is_named(make_config: Any, name: str, value: int) -> None:
    cfg = make_config(options={name: value})
    with pytest.raises(ConfigError, match=name.rpartition(".")[2]):
        train_classifier(cfg)
    assert not list(Path(cfg.work_dir).glob("*.pth"))


@pytest.mark.parametrize(
    "sections",
    [
        dict(workflow=[("train", 10**30), ("val", 1)]),
        dict(custom_hooks=[dict(type="PreciseBNHook", num_batches=10**30)]),
        dict(custom_hooks=[dict(type="UnfreezeHook", epoch=10**30)]),
        dict(lr_config=dict(policy="step", step=[10**30])),
        dict(lr_config=dict(policy="exp", gamma=10.0, by_epoch=False), total_epochs=100),
    ],
)
def test_other_counts_beyond_all_bounds(make_config: Any, sections: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        train_classifier(make_config(**sections))


def test_objects_among_a_configs_values(make_config: Any, tmp_path: Path, capsys: Any) -> None:
    """A class is refused alike by all commands; a path and NumPy's numbers train, and are in the kept config."""
    base = str(tmp_path / "base.py")
    make_config(total_epochs=1).dump(base)
    (tmp_path / "class.py").write_text(
        f"_base_ = {base!r}\nfrom torch.optim import SGD\noptimizer = dict(_delete_=True, type=SGD, lr=0.1)\n"
        "quant_transformer = dict(type='mTransformerV2', quan_policy=dict(Conv2d=dict(type='LSQConv')))\n"
    )
    for verb in ("plan", "train"):
        assert main([verb, str(tmp_path / "class.py")]) == 2
        assert "optimizer.type is the class SGD, for which its name is written, 'SGD'" in capsys.readouterr().err
    (tmp_path / "path.py").write_text(
        f"_base_ = {base!r}\nfrom pathlib import Path\nimport numpy as np\nwork_dir = Path({str(tmp_path)!r}) / 'w'\n"
        "optimizer = dict(lr=np.float32(0.5))\nseed = np.int64(7)\n"
    )
    assert main(["train", str(tmp_path / "path.py")]) == 0
    kept = Config.fromfile(tmp_path / "w" / "path.py")
    assert (kept.work_dir, kept.optimizer.lr, kept.seed) == (str(tmp_path / "w"), 0.5, 7)


def test_a_signal_while_the_config_is_formatted_is_a_signal(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a config that cannot be formatted."""
    from lbitcls.utils import config_text

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config_text, "_scalar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(make_config())

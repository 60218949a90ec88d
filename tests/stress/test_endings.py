"""The judges of ended trainings and of failing disks notice each kind of loss, and nothing where there is none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stress import disk, phases
from stress.damaged_runs import copy_of
from stress.endings import fault_of_end
from stress.kills import draw_cases
from stress.nursery import begin, spread
from stress.phases import Phases
from stress.trainings import differences

RECORDS = [dict(mode="train", epoch=1, iter=number, loss=0.5, time=0.1) for number in (1, 2)]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A finished run's work directory, as far as it is compared."""
    folder = tmp_path / "work"
    folder.mkdir()
    meta = {"run": "20260101_000000_00000000", "epoch": 1}
    torch.save({"meta": meta, "state_dict": {"weight": torch.ones(3)}}, folder / "epoch_1.pth")
    os.link(folder / "epoch_1.pth", folder / "latest.pth")
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (folder / "summary.json").write_text(json.dumps({"top1": 90.0, "seconds": 1.0}))
    (folder / "heartbeat.json").write_text('{"state": "finished"}')
    return folder


def rewrite(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda work: (work / name).write_text((work / name).read_text().replace(old, new))


def change_weight(work: Path) -> None:
    content = torch.load(work / "epoch_1.pth")
    content["state_dict"]["weight"][0] += 2**-23
    torch.save(content, work / "epoch_1.pth")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (change_weight, "epoch_1.pth.state_dict.weight has other values"),
    "cut off": (lambda work: os.truncate(work / "epoch_1.pth", 9), "epoch_1.pth cannot be read"),
    "temporary": (lambda work: (work / ".lbitcls-0.tmp").touch(), "left behind: .lbitcls-0.tmp"),
    "gone": (lambda work: (work / "latest.pth").unlink(), "missing: latest.pth"),
    "more": (lambda work: (work / "iter_1.pth").touch(), "additional: iter_1.pth"),
    "twice": (rewrite("log.jsonl", '"iter": 2', '"iter": 1'), "log.jsonl has ('train', 1, 1) 2 times"),
    "no JSON": (rewrite("log.jsonl", "}\n{", "}{"), "log.jsonl cannot be read"),
    "loss": (rewrite("log.jsonl", "0.5", "0.25"), "log.jsonl[0].loss is 0.25, not 0.5"),
    "result": (rewrite("summary.json", "90.0", "91.0"), "summary.json.top1 is 91.0, not 90.0"),
    "state": (rewrite("heartbeat.json", "finished", "failed"), "heartbeat.json does not say"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_difference_is_noticed(fault: str, work: Path, tmp_path: Path) -> None:
    copy_of(work, tmp_path / "other")
    rewrite("log.jsonl", '"time": 0.1', '"time": 0.2')(tmp_path / "other")
    rewrite("summary.json", "1.0", "2.0")(tmp_path / "other")
    assert differences(work, tmp_path / "other") == []
    FAULTS[fault][0](tmp_path / "other")
    assert any(text.startswith(FAULTS[fault][1]) for text in differences(work, tmp_path / "other"))


@pytest.mark.parametrize(
    ("code", "errors", "fault"),
    [
        (0, "", ""),
        (143, "", ""),
        (71, "the log x.log cannot be written: full; continuing without it.\nResourceError: x: full.\n", ""),
        (None, "", "hang"),
        (1, "DataError: no.\n", "exit code 1: DataError"),
        (71, "", "without a message"),
        (71, "Traceback (most recent call last):\n  File\nOSError: x\n", "a traceback"),
        (71, "it went wrong\n", "not one line"),
    ],
)
def test_ends_of_commands(code: int | None, errors: str, fault: str) -> None:
    found = fault_of_end(code, errors, {0, 71, 143}, "/tmp/x")
    assert fault in found and bool(found) == bool(fault)


def test_names_of_one_file_stay_together(work: Path, tmp_path: Path) -> None:
    copy_of(work, tmp_path / "other")
    assert (tmp_path / "other" / "latest.pth").samefile(tmp_path / "other" / "epoch_1.pth")


def test_a_phase_is_seen_from_outside() -> None:
    board = Phases((phases.SAVE, 2))
    seen = board._marked(phases.SAVE, lambda: board.now)
    assert board.now == phases.EARLY and not board.wait(0)
    assert [seen(), board.wait(0), seen(), board.wait(0)] == [phases.SAVE, False, phases.SAVE, True]
    assert board.entries(phases.SAVE) == 2 and board.now == phases.LATE
    board.close()


def test_few_cases_have_some_of_each_kind() -> None:
    few, all_ = draw_cases(0.25, 0), draw_cases(1.0, 0)
    kinds = {(case.way, case.phase) for case in all_}
    assert len({(case.way, case.phase) for case in few}) > len(kinds) / 2 and few == all_[: len(few)]
    assert sum(case.way == "SIGKILL" for case in all_) == 60
    assert len(draw_cases(2.0, 0)) == 2 * len(all_)


def test_commands_start_in_forked_processes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    children = {name: begin(arguments, tmp_path / name) for name, arguments in {"a": ["--version"], "b": ["x"]}.items()}
    assert [child.code() for child in children.values()] == [0, 2]
    assert children["a"].output.startswith("lbitcls ") and "there is no verb 'x'" in children["b"].errors
    assert sorted(spread(lambda case: case * 2, [1, 2, 3], workers=2)) == [2, 4, 6]


DISK = """
import os, sys
from pathlib import Path
from stress import disk
folder, number, times = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
counter = disk.Counter()
disk.failing(folder, disk.Fault("x", disk.CHANGES, number, times), 3, counter)()
for place in (folder / "a", folder / "b", folder.parent / "c"):
    try:
        place.write_bytes(b"x" * 100)
    except OSError as error:
        print(error.errno, end=" ")
print(counter.value)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("number", "times", "said"), [(0, -1, "4"), (errno.ENOSPC, -1, "28 5"), (errno.EIO, 1, "5 4")])
def test_a_disk_fails_below_its_folder_alone(
    number: int, times: int, said: str, tmp_path: Path, repo_root: Path
) -> None:
    """Each file is opened and written: the second write is the fourth operation; a full disk writes half at first."""
    folder = tmp_path / "disk"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(repo_root / "benchmarks"), "LD_PRELOAD": str(disk.build(tmp_path))}
    command = [sys.executable, "-c", DISK, folder, number, times]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said
    assert (tmp_path / "c").stat().st_size == 100 and (folder / "a").stat().st_size == 100


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_ended_training_is_lost(repo_root: Path) -> None:
    command = [sys.executable, str(repo_root / "benchmarks" / "stress"), "--parts", "kills", "storage"]
    done = subprocess.run([*command, "--scale", "0.07"], capture_output=True, text=True, cwd=repo_root)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "| nothing: a command that is started as usual |" in done.stdout and "| a full disk |" in done.stdout

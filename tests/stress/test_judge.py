"""The judge of the stress run notices each kind of loss, and nothing where there is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lbitcls.utils.errors import DataError
from stress.judge import fault_of_message, judge
from stress.verdicts import Kind, NotJudged


def refuse(folder: Path) -> None:
    raise DataError("it is wrong; mend it.")


def say_nothing(folder: Path) -> None:
    raise DataError("")


def learn_nothing(folder: Path) -> None:
    raise NotJudged("not trained")


def break_off(folder: Path) -> None:
    raise KeyError("x")


def wait(folder: Path) -> None:
    time.sleep(60)


def end(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(folder: Path) -> None:
    bytes(bytearray(b"x" * 100_000_000))


def write_outside(folder: Path) -> None:
    (folder.parent.parent / "x").write_text("x")


def change(folder: Path) -> None:
    (folder / "x").write_text("other")


def start(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def read_others(folder: Path) -> None:
    (folder / "../../secrets/precious").read_text()


FAULTS = {
    say_nothing: "an empty message",
    break_off: "KeyError",
    wait: "hang",
    end: "signal 9",
    fill: "memory",
    write_outside: "outside its folder",
    change: "an input changed",
    start: "subprocess.Popen",
    read_others: "not its own",
}


class Planted(Kind):
    """Good cases around those of `FAULTS`."""

    name = "planted"
    count = 40
    most_mib = 50
    seconds = 1

    def draw(self, number: int, folder: Path) -> str:
        (folder / "x").write_text("x")
        return f"case {number}"

    def read(self, number: int, folder: Path) -> object:
        what = [*FAULTS, refuse, learn_nothing]
        if number % 3 == 0 and number // 3 < len(what):
            what[number // 3](folder)
        return None


def test_every_kind_of_loss_is_noticed(tmp_path: Path) -> None:
    result = judge(Planted(), range(Planted.count), tmp_path / "x", workers=2)
    found = {loss.number: loss.what for loss in result.losses}
    assert found.keys() == {3 * place for place in range(len(FAULTS))}
    for place, sign in enumerate(FAULTS.values()):
        assert sign in found[3 * place]
    assert (result.accepted, result.refused, result.unjudged) == (Planted.count - len(FAULTS) - 2, 1, 1)
    assert len(result.summary()) == len(FAULTS) and "case 3: case 3" in result.summary()[1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [("x.png: cut off.\n  mend it", ""), (" ", "empty"), ("a\x1b[2J", "control"), ("x" * 6000, "6000 characters")],
)
def test_messages(text: str, fault: str) -> None:
    assert fault in fault_of_message(text, "/tmp/x") if fault else not fault_of_message(text, "/tmp/x")
    assert not fault_of_message("/tmp/long/folder" * 400, "/tmp/long/folder")


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_no_input_is_lost(repo_root: Path) -> None:
    command = [sys.executable, str(repo_root / "benchmarks" / "stress"), "--parts", "inputs", "--scale", "0.03"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo_root)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 9
    read = [int(row.split(" | ")[2].replace(",", "")) for row in rows[1:-1]]
    assert min(read) > 0, "each kind has cases that are read"

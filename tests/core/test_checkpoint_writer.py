"""Checkpoints that are written in the background: content, order, errors, forks."""

from __future__ import annotations

import errno
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.core import checkpoint_writer
from lbitcls.core.checkpoint_writer import CheckpointWriter
from lbitcls.utils.checkpoint import checkpoint_content, read_checkpoint


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event that lets files be written."""
    event, write = threading.Event(), checkpoint_writer.write_checkpoint

    def wait(content: dict[str, Any], path: Path) -> None:
        assert event.wait(20)
        write(content, path)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", wait)
    yield event
    event.set()


def later(event: threading.Event) -> None:
    timer = threading.Timer(0.2, event.set)
    timer.start()


def net() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), torch.nn.BatchNorm2d(4))


def test_the_file_has_the_state_of_the_save(tmp_path: Path, gate: threading.Event) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    meta = {"epoch": 1, "list": [1]}
    with CheckpointWriter() as writer:
        writer.save(checkpoint_content(model, optimizer, meta), tmp_path / "a.pth")
        meta["list"].append(2)
        optimizer.step()
        later(gate)
    saved = read_checkpoint(tmp_path / "a.pth")
    assert all(torch.equal(saved["state_dict"][name], value) for name, value in before.items())
    assert saved["state_dict"]["0.weight"].stride() == before["0.weight"].stride()
    assert torch.equal(saved["optimizer"]["state"][0]["momentum_buffer"], momentum)
    assert saved["meta"]["list"] == [1]
    stored = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    assert stored._metadata["1"] == {"version": 2}, "with which torch decides what an older file lacks"


def test_files_are_written_in_order_and_a_third_waits(tmp_path: Path, gate: threading.Event) -> None:
    done: list[int] = []

    def note(number: int) -> Callable[[], None]:
        return lambda: done.append(number)

    with CheckpointWriter() as writer:
        for number in (1, 2):
            writer.save(checkpoint_content(net()), tmp_path / f"{number}.pth", note(number))
        assert not done and not list(tmp_path.iterdir())
        later(gate)
        writer.save(checkpoint_content(net()), tmp_path / "3.pth", note(3))
        assert gate.is_set() and done[:1] == [1]
        writer.wait()
        assert done == [1, 2, 3] and writer.seconds is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.pth", "2.pth", "3.pth"]


def test_an_error_ends_the_writing_and_is_raised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: dict[str, Any], path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "write_checkpoint", full)
        with CheckpointWriter() as writer:
            writer.save(checkpoint_content(net()), tmp_path / "1.pth", lambda: done.append(1))
            with pytest.raises(OSError, match=r"1\.pth"):
                writer.wait()
            patch.undo()
            writer.save(checkpoint_content(net()), tmp_path / "2.pth", lambda: done.append(2))
    assert not done and not list(tmp_path.iterdir()), "nothing is written after a file that is missing"


def test_the_error_of_the_last_file_is_raised_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), CheckpointWriter() as writer:
        writer.save(checkpoint_content(net()), tmp_path / "file" / "a.pth")


def test_in_the_foreground_the_save_itself_writes(tmp_path: Path) -> None:
    writer = CheckpointWriter(background=False)
    writer.save(checkpoint_content(net()), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").exists() and writer.seconds is not None


def test_a_fork_waits_for_the_file(tmp_path: Path, gate: threading.Event) -> None:
    context = multiprocessing.get_context("fork")
    with CheckpointWriter() as writer:
        writer.save(checkpoint_content(net()), tmp_path / "a.pth")
        later(gate)
        child = context.Process(target=int)
        child.start()
        assert (tmp_path / "a.pth").exists()
        child.join(20)
    assert child.exitcode == 0

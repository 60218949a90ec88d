"""The commands that a command's output ends with: each is one that the parser accepts, and they lead to `benchmark`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lbitcls.commands import next_steps as module
from lbitcls.commands.main import _parse
from lbitcls.commands.next_steps import say_config, say_next

TRAIN = ["train", "c.py", "--data-root", "my photos", "--options", "optimizer.lr=0.1"]
FLOAT = {"checkpoint": "work/best_top-1.pth", "float": {}}
EXPORTED = {**FLOAT, "quantized": {}, "integer": {"file": "work/model.onnx"}}


@pytest.mark.parametrize(
    ("command", "result", "following"),
    [
        (TRAIN, FLOAT, ["test"]),
        (TRAIN, {**FLOAT, "quantized": {}}, ["test", "export"]),
        (TRAIN, EXPORTED, ["infer", "benchmark"]),
        (["test", "c.py"], None, ["train"]),
        (["test", "c.py", "a.pth", "--data-root", "d"], None, ["export"]),
        (["test", "c.py", "work/model.onnx"], None, ["benchmark"]),
        (["infer", "c.py", "a.pth", "x.jpg"], None, ["export"]),
        (["infer", "work/model.onnx", "x.jpg"], None, ["benchmark"]),
        (["test", "a.pth", "photos"], None, []),
        (["export", "c.py", "a.pth", "--out", "it's.onnx"], None, ["test", "benchmark"]),
        (["export", "c.py", "a.pth", "--out", "b.onnx", "--part", "backbone"], None, []),
        (["benchmark", "a.onnx"], None, []),
        (["plan", "c.py"], None, []),
    ],
)
def test_next(
    command: list[str], result: Any, following: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "interactive", lambda: True)
    Path("work").mkdir()
    Path("work/float.onnx").touch()
    args = _parse(command, None)
    say_next(args.verb, args, result)
    start, *lines = capsys.readouterr().out.splitlines() or ["Next:"]
    assert start == "Next:"
    words = [shlex.split(line) for line in lines]
    assert [line[:2] for line in words] == [["lbitcls", verb] for verb in following]
    for line in words:
        found = _parse(line[1:], None)
        if "--data-root" in command and line[1] != "infer" and line[1] != "benchmark":
            assert found.data_root == args.data_root
        if "--options" in command and line[1] not in ("benchmark", "infer"):
            assert found.options == args.options
        if found.verb == "benchmark" and "work/model.onnx" in line:
            assert found.models == ["work/model.onnx", "work/float.onnx"]


def test_only_the_first_process_says_it_and_infer_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    args = _parse(["infer", "c.py", "a.pth", "x.jpg"], None)
    say_next("infer", args, None)
    monkeypatch.setenv("RANK", "1")
    args = _parse(["test", "configs/quickstart/digits_lsq_4w4f.py"], None)
    say_config(args)
    say_next("test", args, None)
    assert capsys.readouterr() == ("", "")


def test_a_config_of_the_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/quickstart/digits_lsq_4w4f.py"
    say_config(_parse(["test", name], None))
    assert capsys.readouterr().err.endswith(f"{name}, from the package's library.\n")
    Path(name).parent.mkdir(parents=True)
    Path(name).touch()
    for config in (name, "none.py"):
        say_config(_parse(["test", config], None))
    assert capsys.readouterr().err == ""

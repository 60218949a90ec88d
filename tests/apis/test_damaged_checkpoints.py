"""Checkpoints with flipped bits and odd content: every command says what is wrong, or does what it would have done."""

from __future__ import annotations

import copy
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import Delivered
from PIL import Image

from lbitcls.commands.main import main
from lbitcls.utils import Config
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import CheckpointError
from stress.odd_checkpoints import STATES, mutations

VERBS = ("resume", "load", "test", "infer", "export", "calibrate", "compare", "convert")
OPTIONS = ["calibration.epoch=0", "export=none", "log_config.hooks=[]"]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def test_a_flipped_bit_is_found_or_changes_nothing(delivered: Delivered, tmp_path: Path) -> None:
    draw, path = random.Random(12), tmp_path / "x.pth"
    content, intact = delivered.checkpoint.read_bytes(), read_checkpoint(delivered.checkpoint)
    refused = 0
    for _ in range(200):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read_checkpoint(path)
        except CheckpointError as error:
            refused += 1
            assert len(str(error)) < 500 + len(str(path))
        else:
            assert same(found, intact)
    assert refused > 80, "most of a checkpoint is values and what names them"


def test_a_changed_weight_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"fc.weight": torch.full((4, 4), 3.0)}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(torch.tensor(3.0).numpy().tobytes(), torch.tensor(5.0).numpy().tobytes(), 1))
    with pytest.raises(CheckpointError, match="damaged .*was changed after"):
        read_checkpoint(path)
    read_checkpoint(path, mmap=True)  # the values are not looked at


def test_nesting_without_end(tmp_path: Path) -> None:
    """Deeper than Python can write it: a list in a list in a list …, and a dict in itself."""
    path = tmp_path / "x.pth"
    for pickled in (
        b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in (("data.pkl", pickled), ("version", b"3"), ("byteorder", b"little")):
                archive.writestr(f"x/{name}", part)
        with pytest.raises(CheckpointError, match="containers are nested"):
            read_checkpoint(path)


@pytest.fixture(scope="module")
def config(delivered: Delivered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The delivered model's config, with few images."""
    cfg = Config.fromfile(delivered.config)
    cfg.data.train.indices = list(range(128))
    cfg.data.val.indices = cfg.data.test.indices = list(range(32))
    path = tmp_path_factory.mktemp("config") / "config.py"
    cfg.dump(path)
    return path


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a run's checkpoint after one of two epochs."""
    work = tmp_path_factory.mktemp("run")
    options = [*OPTIONS, "total_epochs=1"]
    command = ["train", str(config), "--work-dir", str(work), "--no-validate", "--options", *options]
    assert main(command) == 0
    return torch.load(work / "latest.pth", weights_only=True)


def call(verb: str, config: Path, path: Path, folder: Path) -> list[str]:
    """The command that reads the checkpoint `path`."""
    files, image = [str(config), str(path)], folder / "a.png"
    Image.new("L", (8, 8), 99).save(image)
    train = ["train", str(config), "--no-validate", "--work-dir", str(folder / "work")]
    return {
        "resume": [*train, "--resume-from", str(path), "--options", *OPTIONS, "total_epochs=2"],
        "load": [*train, "--load-from", str(path), "--options", *OPTIONS, "total_epochs=1"],
        "test": ["test", *files],
        "infer": ["infer", *files, str(image)],
        "export": ["export", *files, "--out", str(folder / "out.onnx")],
        "calibrate": ["calibrate", *files, "--out", str(folder / "out.pth"), "--no-test"],
        "compare": ["compare", str(image), *files, "--save-path", str(folder / "out.html")],
        "convert": ["convert", str(path), str(folder / "converted.pth")],
    }[verb]


def spoil(content: dict[str, Any], name: str, path: Path) -> None:
    spoiled = copy.deepcopy(content)
    mutations()[name](spoiled)
    torch.save(spoiled, path)


def run(verb: str, name: str, content: dict[str, Any], config: Path, folder: Path, capsys: Any) -> None:
    path = folder / "x.pth"
    spoil(content, name, path)
    code = main(call(verb, config, path, folder))
    said = capsys.readouterr().err
    assert code in (0, 1, 2), said
    assert len(said) < 5000 and "Traceback" not in said and "\x1b[2J" not in said
    assert code == 0 or "Error: " in said


# Reading is where content is checked; what comes later is tried where it is the likeliest to break.
@pytest.mark.parametrize("name", sorted(mutations()))
def test_odd_content_is_named_when_it_is_read(name: str, trained: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    spoil(trained, name, path)
    try:
        content = read_checkpoint(path)
    except CheckpointError as error:
        assert len(str(error)) < 600 + len(str(path)) and str(error).isprintable()
    else:
        assert all(type(value) is torch.Tensor and type(name) is str for name, value in content["state_dict"].items())


@pytest.mark.parametrize("name", [name for name, _ in STATES])
def test_a_run_does_not_go_on_with_odd_states(
    name: str, trained: dict[str, Any], config: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "x.pth"
    spoil(trained, name, path)
    assert main(call("resume", config, path, tmp_path)) == 1
    said = capsys.readouterr().err
    assert said.startswith("CheckpointError: ") and "--load-from" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(mutations()))
def test_every_command_says_what_is_odd(
    name: str, trained: dict[str, Any], config: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "read.pth"
    spoil(trained, name, path)
    try:
        read_checkpoint(path)
        verbs = VERBS[:2] if name in dict(STATES) else VERBS
    except CheckpointError:  # all commands read by this function
        verbs = (VERBS[len(name) % len(VERBS)],)
    for verb in verbs:
        run(verb, name, trained, config, tmp_path, capsys)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("verb", VERBS)
def test_no_command_waits_at_a_pipe(verb: str, delivered: Delivered, tmp_path: Path, capsys: Any) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    assert main(call(verb, delivered.config, tmp_path / "pipe.pth", tmp_path)) == 1
    assert "pipe.pth is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["Adam", "AdamW", "RMSprop"])
def test_another_optimizer_is_named_with_the_remedy(
    other: str, trained: dict[str, Any], config: Path, tmp_path: Path, capsys: Any
) -> None:
    """By its name, and in checkpoints of before by what it keeps."""
    for number, change in enumerate((lambda meta: None, lambda meta: meta.pop("optimizer"))):
        content = copy.deepcopy(trained)
        change(content["meta"])
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        command = call("resume", config, path, tmp_path)
        assert main([*command, f"optimizer={{'_delete_': True, 'type': '{other}', 'lr': 0.001}}"]) == 1
        said = capsys.readouterr().err
        assert "another optimizer" in said and "--load-from" in said and other in said
    assert not list(tmp_path.glob("work/*.pth"))

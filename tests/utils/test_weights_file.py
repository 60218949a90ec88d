"""Weights in safetensors files: the same model and metadata as the checkpoint, nothing else, and no damage unseen."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lbitcls.utils.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from lbitcls.utils.errors import CheckpointError, DependencyError

pytest.importorskip("safetensors")

META = {"config": "total_epochs = 3\n", "CLASSES": ("ant", "bee"), "epoch": 3, "iter": 30, "run": "secret", "seed": 1}


def a_model() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2).to(torch.bfloat16))
    model.register_buffer("flag", torch.tensor(True))
    model.register_buffer("none", torch.zeros(0, 3))
    model.register_buffer("again", model[0].weight.detach())  # the same memory
    model.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
    return model


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(a_model(), path, torch.optim.SGD(a_model().parameters(), 0.1), META, hooks={"x": {"y": 1}})
    return path


def test_weights_and_what_describes_them_come_back(weights: Path) -> None:
    content = read_checkpoint(weights)
    assert content.keys() == {"meta", "state_dict"}
    state = a_model().state_dict()
    assert content["state_dict"].keys() == state.keys()
    for name, value in content["state_dict"].items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name]), name
    meta = content["meta"]
    assert tuple(meta.pop("CLASSES")) == META["CLASSES"] and meta.pop("lbitcls_version")
    assert meta == {name: META[name] for name in ("config", "epoch", "iter")}
    other = a_model()
    nn.init.zeros_(other[0].weight)
    load_checkpoint(other, weights, strict=True)
    assert torch.equal(other[0].weight, state["0.weight"])


def test_the_file_is_not_a_pickle_and_others_can_read_it(weights: Path) -> None:
    from safetensors.torch import load_file

    assert load_file(weights).keys() == a_model().state_dict().keys()
    assert b"cpickle" not in weights.read_bytes().lower()


def test_weights_of_others_load_without_metadata(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    content = read_checkpoint(tmp_path / "other.safetensors")
    assert content["meta"] == {} and [*content["state_dict"]] == ["fc.weight"]


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write(path: Path, head: dict[str, Any] | bytes, rest: bytes, size: int | None = None) -> None:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + rest)


def change_meta(path: Path, **values: Any) -> None:
    head, rest = header(path)
    head["__metadata__"]["lbitcls"] = json.dumps({**json.loads(head["__metadata__"]["lbitcls"]), **values})
    write(path, head, rest)


@pytest.mark.parametrize("place", [-1, 0])
def test_a_changed_weight_is_found(weights: Path, place: int) -> None:
    head, rest = header(weights)
    changed = bytearray(rest)
    changed[place] ^= 1
    write(weights, head, bytes(changed))
    with pytest.raises(CheckpointError, match="is damaged: its weights are not those of its checksum"):
        read_checkpoint(weights)


def damaged(path: Path, kind: str) -> None:
    head, rest = header(path)
    first = next(name for name in head if name != "__metadata__")
    if kind == "cut":
        write(path, head, rest[:-1])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "header of 2^60 bytes":
        write(path, head, rest, size=2**60)
    elif kind == "tensor of 2^60 values":
        write(path, {**head, first: {**head[first], "shape": [2**60]}}, rest)
    elif kind == "tensor beyond the file":
        write(path, {**head, first: {**head[first], "data_offsets": [0, 2**40]}}, rest)
    elif kind == "nested":
        head["__metadata__"]["lbitcls"] = "[" * 100_000
        write(path, head, rest)
    elif kind == "a list":
        head["__metadata__"]["lbitcls"] = "[1]"
        write(path, head, rest)
    elif kind == "a pickle":
        torch.save({"state_dict": {"a": torch.ones(1)}}, path)


KINDS = ["cut", "empty", "header of 2^60 bytes", "tensor of 2^60 values", "tensor beyond the file", "nested", "a list"]


@pytest.mark.parametrize("kind", [*KINDS, "a pickle"])
def test_damaged_and_hostile_files_are_refused_at_once(weights: Path, kind: str) -> None:
    damaged(weights, kind)
    message = r"cannot be read as weights \(.*\): it is damaged, or not a .safetensors"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(weights)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(CLASSES="ab"), "CLASSES in 'meta' must be a list of class names"),
        (dict(epoch=-1), "epoch in 'meta' must be an integer ≥ 0; got -1"),
        (dict(config=["a"]), "config in 'meta' must be a string"),
    ],
)
def test_metadata_are_checked(weights: Path, values: dict[str, Any], message: str) -> None:
    change_meta(weights, **values)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(weights, mmap=True)


def test_a_missing_package_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(DependencyError, match=r"pip install 'lbitcls\[safetensors\]'"):
        read_checkpoint(weights)
    with pytest.raises(DependencyError, match=r"pip install 'lbitcls\[safetensors\]'"):
        save_checkpoint(a_model(), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()

"""Metadata of exported models."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from lbitcls.deploy.runtime.metadata import KEY, ModelInfo, read_info, write_info
from lbitcls.utils.errors import CheckpointError, DependencyError


def test_info_survives_the_file(write_onnx: Any, info: ModelInfo) -> None:
    assert read_info(write_onnx(info=info)) == info
    assert info.is_float and not dataclasses.replace(info, layers=[dict(name="fc", weight_bits=4)]).is_float


def test_writing_again_replaces(write_onnx: Any, info: ModelInfo) -> None:
    path = write_onnx(info=info)
    model = onnx.load(path)
    write_info(model, dataclasses.replace(info, bits="W4A4"))
    assert [entry.key for entry in model.metadata_props] == [KEY]
    onnx.save(model, path)
    found = read_info(path)
    assert found is not None and found.bits == "W4A4"


def test_a_foreign_file_says_nothing(write_onnx: Any) -> None:
    assert read_info(write_onnx()) is None


def test_a_record_of_a_later_kind(write_onnx: Any, info: ModelInfo) -> None:
    """Keys that a later version adds to the same format are accepted; a newer format is refused."""
    path = write_onnx(info=info)
    model = onnx.load(path)
    record = {**json.loads(model.metadata_props[0].value), "colour": "blue"}
    model.metadata_props[0].value = json.dumps(record)
    onnx.save(model, path)
    assert read_info(path) == info
    model.metadata_props[0].value = json.dumps({**record, "format": 2, "version": "9.9"})
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"written by lbitcls 9\.9.*upgrade"):
        read_info(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": "x"}', "null"])
def test_a_damaged_record(write_onnx: Any, info: ModelInfo, text: str) -> None:
    path = write_onnx(info=info)
    model = onnx.load(path)
    model.metadata_props[0].value = text
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="damaged.*export the model again"):
        read_info(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classes", 7, r"classes must be list\[str\] \| None, but is 7"),
        ("classes", ["ant", 2], r"classes must be list\[str\] \| None, but is \['ant', 2\]"),
        ("pipeline", [1, 2], r"pipeline must be list\[dict\[str, Any\]\], but is \[1, 2\]"),
        ("pipeline", {"type": "Normalize"}, "pipeline must be list"),
        ("layers", "fc", "layers must be list"),
        ("input_shape", [3, 6], r"input_shape must be tuple\[int, int, int\], but is \(3, 6\)"),
        ("input_shape", 3, "input_shape must be tuple"),
        ("num_classes", "4", "num_classes must be int"),
        ("num_classes", True, "num_classes must be int"),
        ("method", None, "method must be str, but is None"),
        ("feature_shapes", [[1, 2.5]], "feature_shapes must be list"),
        ("config", ["x" * 10_000], r"config must be str, but is .{,180}\);"),
    ],
)
def test_a_field_of_another_type(write_onnx: Any, info: ModelInfo, field: str, value: Any, message: str) -> None:
    path = write_onnx(info=info)
    model = onnx.load(path)
    record = {**json.loads(model.metadata_props[0].value), field: value}
    model.metadata_props[0].value = json.dumps(record)
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=rf"lbitcls metadata in .*model\.onnx is damaged \({message}") as caught:
        read_info(path)
    assert str(caught.value).endswith("); export the model again.")


def test_files_that_are_none(write_onnx: Any, tmp_path: Path) -> None:
    write_onnx("model.onnx")
    with pytest.raises(CheckpointError, match=r"no ONNX file .*modle\.onnx. Did you mean 'model\.onnx'"):
        read_info(tmp_path / "modle.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        read_info(tmp_path / "empty")
    for content in (b"", b"PK\x03\x04 something", b"hello"):
        (tmp_path / "other.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"other\.onnx"):
            read_info(tmp_path / "other.onnx")


def test_without_the_package(write_onnx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DependencyError, match=r"pip install lbitcls\[deploy\]"):
        read_info(path)

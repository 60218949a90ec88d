"""Metadata behind the last byte of files that are not ONNX."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from lbitcls.deploy.runtime.metadata import MARK, ModelInfo, read_info, with_trailer
from lbitcls.utils.errors import CheckpointError

CONTENT = bytes(range(256)) * 3


@pytest.mark.parametrize("suffix", [".tflite", ".pte", ".PTE"])
def test_info_survives_the_file(tmp_path: Path, info: ModelInfo, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    named = dataclasses.replace(info, classes=["Löwenzahn", "雛菊", "a", "b"], num_classes=4)
    path.write_bytes(with_trailer(CONTENT, named))
    assert read_info(path) == named and path.read_bytes().startswith(CONTENT)
    path.write_bytes(CONTENT)
    assert read_info(path) is None, "a foreign file"


def test_any_change_is_found(tmp_path: Path, info: ModelInfo) -> None:
    whole, draw, path = with_trailer(CONTENT, info), random.Random(0), tmp_path / "model.tflite"
    for _ in range(200):
        changed = bytearray(whole)
        place = draw.randrange(len(whole) - len(MARK))
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="has changed since"):
            read_info(path)
    for cut in (1, 100, len(CONTENT)):
        path.write_bytes(whole[cut:])
        with pytest.raises(CheckpointError, match="has changed since"):
            read_info(path)
    path.write_bytes(MARK)
    with pytest.raises(CheckpointError, match="has changed since"):
        read_info(path)


def test_a_sealed_record_is_checked_all_the_same(tmp_path: Path, info: ModelInfo) -> None:
    """Whoever writes a file can seal it, so sizes and types are checked as in an ONNX file."""
    path = tmp_path / "model.pte"
    for wrong in (dict(input_shape=(3, 0, 5)), dict(num_classes=2**40), dict(bits=["W4A4"]), dict(format="1")):
        path.write_bytes(with_trailer(CONTENT, dataclasses.replace(info, **wrong)))
        with pytest.raises(CheckpointError, match="metadata in .* is damaged"):
            read_info(path)

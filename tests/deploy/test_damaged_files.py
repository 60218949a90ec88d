"""Exported files with flipped bits, or with implausible metadata: every reader refuses them by name."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.runtime.metadata import KEY, SEAL, ModelInfo, existing_file, read_info, sealed, write_info
from lbitcls.deploy.targets.cpu import CPU
from lbitcls.inference.onnx_model import logits_of
from lbitcls.utils.errors import CheckpointError

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 6, 5), dtype=np.float32)


@pytest.fixture
def exported(write_onnx: Callable[..., Path], info: ModelInfo) -> Path:
    path = write_onnx(info=info)
    path.write_bytes(sealed(onnx.load(path)))
    return path


def test_a_flipped_bit_is_found_or_changes_nothing(exported: Path, info: ModelInfo) -> None:
    draw, content = random.Random(12), exported.read_bytes()
    expected = load(exported, "onnxruntime", threads=1).predict(IMAGES)
    loaded = 0
    for _ in range(200):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        exported.write_bytes(flipped)
        try:
            found = load(exported, "onnxruntime", threads=1)
        except CheckpointError as error:
            assert len(str(error)) < 500 + len(str(exported))
            continue
        loaded += 1
        assert np.array_equal(found.predict(IMAGES), expected) and found.info == info
    assert loaded < 40, "only a flip in the digest's own entry is not found"


@pytest.mark.parametrize("engine", CPU.engines)
def test_a_changed_weight_is_found_by_every_reader(exported: Path, engine: str) -> None:
    model = onnx.load(exported)
    model.graph.initializer[0].float_data[0] += 1
    onnx.save(model, exported)
    for read in (lambda: load(exported, engine), lambda: read_info(exported)):
        with pytest.raises(CheckpointError, match=f"has changed since lbitcls wrote it.*entry {SEAL}"):
            read()
    del model.metadata_props[[entry.key for entry in model.metadata_props].index(SEAL)]
    onnx.save(model, exported)
    assert load(exported, engine).info == read_info(exported)


def test_what_is_written_again_has_no_digest(exported: Path, info: ModelInfo) -> None:
    model = onnx.load(exported)
    write_info(model, info)
    assert [entry.key for entry in model.metadata_props] == [KEY]
    assert sealed(model) == exported.read_bytes()


def test_a_class_may_be_named_like_a_digest(write_onnx: Any, info: ModelInfo) -> None:
    name = f"{SEAL}\x12\x40{'a' * 64}"
    path = write_onnx(info=dataclasses.replace(info, classes=[name, "b", "c", "d"], config=name))
    path.write_bytes(sealed(onnx.load(path)))
    found = read_info(path)
    assert found is not None and found.classes is not None and found.classes[0] == name


def test_logits_for_other_images_than_were_given(write_onnx: Callable[..., Path], info: ModelInfo) -> None:
    path = write_onnx(info=info)
    model = onnx.load(path)
    model.graph.node[3].attribute.add(name="axis", type=onnx.AttributeProto.INT, i=2)
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"returns \[\(8, 1\)\] for 2 images, not logits"):
        logits_of(load(path), IMAGES)


def test_a_node_without_its_inputs(write_onnx: Callable[..., Path]) -> None:
    path = write_onnx()
    model = onnx.load(path)
    model.graph.node[1].op_type = "Conv"
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="openvino cannot run .*has input size 1"):
        load(path, "openvino")


def test_opening_a_file_tells_nobody(exported: Path) -> None:
    """OpenVINO's telemetry would report that it was imported, from a process that it starts."""
    code = "import sys; from lbitcls.deploy.runtime.engine import load; load(sys.argv[1], 'openvino', 1)\n"
    code += "print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, exported], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True False", done.stderr


def test_a_file_of_another_tool_says_so(write_onnx: Any, caplog: Any) -> None:
    assert load(write_onnx()).info is None
    assert "has no lbitcls metadata" in caplog.text


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("input_shape", [3, 60_000, 60_000], "input_shape must be from 1 to 8192, but is 60000"),
        ("input_shape", [3, 0, 5], "input_shape must be"),
        ("input_shape", [10**30, 6, 5], "input_shape must be"),
        ("num_classes", 10**9, "num_classes must be from 1 to 1048576, but is 1000000000"),
        ("num_classes", -1, "num_classes must be"),
        ("num_classes", 5, "it has 4 class names for 5 classes"),
        ("classes", ["x" * 10**6] * 4, "classes contains a text of 1000000 characters"),
        ("classes", ["\ud800"] * 4, "surrogates"),
        ("pipeline", [{"type": "Resize", "size": 60_000}], "pipeline contains the number 60000"),
        ("pipeline", [{"type": "Resize", "size": [60_000, -1]}], "pipeline contains the number 60000"),
        ("pipeline", [{"type": "Pad", "padding": [-(10**9)]}], "pipeline contains the number -1000000000"),
        ("pipeline", [{"type": "Normalize", "mean": [float("nan")]}], "it contains the number NaN"),
        ("pipeline", [{"type": "Normalize", "std": [float("inf")]}], "it contains the number Infinity"),
        ("pipeline", [{"type": "Normalize", "std": [1e300]}], "pipeline contains the number 1e"),
        ("pipeline", [{"type": "v2.Resize", "size": deep(30)}], "lists nested over 16 deep"),
        ("pipeline", [{}] * 70_000, "pipeline contains a list of 70000 entries"),
        ("layers", [{"name": "fc", "weight_bits": 10**9}], "layers contains the number 1000000000"),
        ("layers", [{"x" * 5000: 1}], "layers contains a text of 5000 characters"),
        ("out_channels", [10**9], "out_channels must be"),
        ("feature_shapes", [[3, 10**9]], "feature_shapes must be"),
        ("residual_bits", 10**6, "residual_bits must be from 1 to 32"),
        ("bits", "W" * 10**5, "bits contains a text of 100000 characters"),
        ("target", "y" * 2000, "target contains a text of 2000 characters"),
    ],
)
def test_what_is_beyond_all_bounds(write_onnx: Any, info: ModelInfo, field: str, value: Any, message: str) -> None:
    path = write_onnx(info=info)
    model = onnx.load(path)
    record = {**json.loads(model.metadata_props[0].value), field: value}
    model.metadata_props[0].value = json.dumps(record)
    onnx.save(model, path)
    for read in (read_info, load):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize("text", ["[" * 100_000, f'{{"format": {"9" * 5000}}}', '{"format": 1e999}', '{"format": NaN}'])
def test_a_record_that_json_does_not_read(write_onnx: Any, info: ModelInfo, text: str) -> None:
    path = write_onnx(info=info)
    model = onnx.load(path)
    model.metadata_props[0].value = text
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        read_info(path)


def test_a_graph_of_giant_images(write_onnx: Any) -> None:
    with pytest.raises(CheckpointError, match="sizes must be at most 8192"):
        load(write_onnx(shape=["N", 3, 60_000, 60_000]))


@pytest.mark.timeout(30)
def test_no_reader_waits_at_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(CheckpointError, match=r"pipe\.onnx is not a regular file"):
        existing_file(tmp_path / "pipe.onnx")

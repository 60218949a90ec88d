"""`lbitcls benchmark`: the table, the file of results, and what a mistake is answered."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lbitcls.commands.main import main
from lbitcls.deploy.runtime import benchmark
from lbitcls.deploy.runtime.metadata import ModelInfo, write_info


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two files that sum up images; the first says that it has quantized layers."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    monkeypatch.setattr(benchmark, "_TURN", 0.001)
    monkeypatch.setattr(benchmark, "_WARM_UP", 0.001)
    paths = []
    for name, bits, layers in (("integer", "W4A4", [dict(name="fc")]), ("float", "float", [])):
        graph = helper.make_graph(
            [helper.make_node("ReduceSum", ["image", "axes"], ["logits"], keepdims=0)],
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 4, 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
            [numpy_helper.from_array(np.array([2, 3]), "axes")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        write_info(model, ModelInfo(version="0", input_shape=(3, 4, 4), pipeline=[], layers=layers, bits=bits))
        paths.append(str(tmp_path / f"{name}.onnx"))
        onnx.save(model, paths[-1])
    return paths


def test_table_and_file(files: list[str], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "deep" / "times.json"
    arguments = ["--batch", "1", "2", "--threads", "1", "--repeats", "2", "--json", str(out)]
    assert main(["benchmark", *files, *arguments]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert re.match(r"openvino 20\d\d\S*, 1 threads, \d+ cores of \S", printed[0])
    rows = [line.split() for line in printed[2:6]]
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        (batch, bits, "f32", path) for batch in "12" for bits, path in zip(("W4A4", "float"), files)
    ]
    assert [row[6] for row in rows][1::2] == ["1.000", "1.000"]
    assert printed[6] == f"Ratios are to {files[1]} in f32: below 1 is faster."
    saved = json.loads(out.read_text())
    assert saved["baseline"] == files[1] and saved["threads"] == 1 and len(saved["timings"]) == 4
    assert f"{saved['timings'][0]['ratio']:.3f}" == rows[0][6]


def test_one_file_has_no_ratio(files: list[str], capsys: Any) -> None:
    assert main(["benchmark", files[0], "--batch", "1", "--threads", "1", "--repeats", "1", "--bf16"]) == 0
    printed = capsys.readouterr().out
    assert "Ratios" not in printed and "bf16 was not timed: there is no float file" in printed


def test_mistakes(files: list[str], tmp_path: Path, capsys: Any) -> None:
    for arguments, message in (
        ([*files, "--engine", "onnxruntim"], "Did you mean 'onnxruntime'"),
        ([*files, "--precision", "f16"], "no precision 'f16'"),
        ([*files, "--batch", "0"], "--batch must be integers ≥ 1"),
        ([*files, "--batch", "1", str(10**12)], "--batch 1,000,000,000,000: the images alone would need 178,813.9 GiB"),
        ([*files, "--batch", "-1"], "--batch must be integers ≥ 1"),
        ([*files, "--threads", "0"], "threads must be an integer from 1 to 1024"),
        ([*files, "--threads", str(10**20)], "threads must be an integer from 1 to 1024"),
        ([*files, "--repeats", "-1"], "--repeats must be integers ≥ 1"),
        ([*files, "--repeats", str(10**9)], "--repeats must be at most 100,000"),
        ([*files, "--json", str(tmp_path)], "--json must name a file"),
        ([*files, "--json", files[0]], "--json .*integer.onnx would replace a file"),
    ):
        assert main(["benchmark", *arguments]) == 2
        captured = capsys.readouterr()
        assert re.search(message, captured.err) and captured.out == ""
    for words in (["--batch", "1e12"], ["--threads", "two"], ["--repeats", "0.5"]):
        with pytest.raises(SystemExit) as stopped:
            main(["benchmark", *files, *words])
        assert stopped.value.code == 2 and "invalid int value" in capsys.readouterr().err
    assert main(["benchmark", str(tmp_path / "flat.onnx")]) == 1
    assert "Did you mean 'float.onnx'" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["checkpoint", b"", b"\x00\xff" * 50, b"\x08\x0a", b"PK\x03\x04 none"])
@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.onnx", "x"])
def test_what_is_no_onnx_model(content: bytes | str, name: str, tmp_path: Path, capsys: Any) -> None:
    """One line says that it is none, what is expected and what to do; nothing of how the bytes are parsed."""
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"state_dict": {"fc.weight": torch.zeros(2, 3)}}, path)
    assert main(["benchmark", str(path), "--batch", "1", "--repeats", "1"]) == 1
    said = capsys.readouterr().err
    assert f"{path} is not an ONNX model" in said and "`lbitcls export`" in said and "rotobuf" not in said
    remedy = f"lbitcls export CONFIG {path} --out" if path.suffix.startswith(".pt") else "Export the model again"
    assert remedy in said and "Traceback" not in said and len(said.strip().splitlines()) == 1

"""Runs that end with an exported model: what is written, what it is worth, and what is refused at their start."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lbitcls.apis import test_classifier as classify
from lbitcls.apis import train_classifier
from lbitcls.deploy.runtime.engines.onnxruntime import ONNXRuntimeEngine
from lbitcls.deploy.runtime.metadata import read_info
from lbitcls.utils.errors import ConfigError, DependencyError
from lbitcls.workflows import training

QUANTIZED = dict(
    type="ModelTransformer",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4), Linear=dict(type="LSQLinear", num_bit_w=4, num_bit_a=4)
    ),
)


def test_the_best_weights_are_exported_and_measured(make_config: Any, capsys: Any) -> None:
    cfg = make_config(
        quant_transformer=QUANTIZED,
        calibration=dict(epoch=2),
        total_epochs=4,
        num_threads=1,
        export=dict(verify=True, num_images=100),
    )
    summary = train_classifier(cfg)
    folder = Path(cfg.work_dir)
    assert json.loads((folder / "summary.json").read_text()) == summary
    integer = summary["integer"]
    assert integer["file"] == str(folder / "model.onnx")
    assert integer["top1"] == pytest.approx(summary["quantized"]["top1"], abs=0.3), "one of 360 images may differ"
    assert integer["top1"] == pytest.approx(classify(cfg, folder / "model.onnx", threads=1)["top-1"])
    assert integer["size_kib"] == pytest.approx((folder / "model.onnx").stat().st_size / 1024)
    assert integer["float_size_kib"] == pytest.approx((folder / "float.onnx").stat().st_size / 1024)
    assert [entry["batch"] for entry in integer["latency"]] == [1, 16]
    for entry in integer["latency"]:
        assert entry["ratio"] == pytest.approx(entry["ms"] / entry["float_ms"])
    assert integer["latency_ratio"] == integer["latency"][1]["ratio"] > 0 and integer["threads"] == 1
    quantized, real = read_info(folder / "model.onnx"), read_info(folder / "float.onnx")
    assert quantized is not None and quantized.bits == "W4A4"
    assert real is not None and real.is_float
    assert (folder / "model.report.json").is_file()
    result = capsys.readouterr().out
    result = result[result.rindex("Result") :]
    assert f"{integer['top1']:.2f} %" in result and f"{integer['latency'][1]['ms']:.2f} ms" in result


def test_an_engine_that_is_not_for_speed_is_not_timed(make_config: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(ONNXRuntimeEngine, "is_timed", False)
    cfg = make_config(
        quant_transformer=QUANTIZED,
        total_epochs=1,
        num_threads=1,
        export=dict(target="tensorrt", verify=True, num_images=100),
    )
    integer = train_classifier(cfg)["integer"]
    assert integer["latency"] == [] and "latency_ratio" not in integer
    assert integer["size_kib"] == pytest.approx((Path(cfg.work_dir) / "model.onnx").stat().st_size / 1024)
    result = capsys.readouterr().out
    assert "integer top-1" in result and "time of" not in result and " ms for an image" not in result
    (judged,) = json.loads((Path(cfg.work_dir) / "model.report.json").read_text())["verification"]["certificates"]
    assert judged["milliseconds"] is None and judged["file"] == integer["file"]


def test_what_could_not_be_exported_is_refused_before_the_run(make_config: Any, monkeypatch: Any) -> None:
    for sections, message in (
        (dict(export=dict(verify=True)), "no quant_transformer"),
        (dict(export=dict(verfy=True), quant_transformer=QUANTIZED), "Did you mean 'verify'"),
    ):
        cfg = make_config(**sections)
        with pytest.raises(ConfigError, match=message):
            train_classifier(cfg)
        assert not Path(cfg.work_dir).exists()
    cfg = make_config(export=dict(verify=True), quant_transformer=QUANTIZED)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DependencyError, match=r"pip install lbitcls\[deploy\]"):
        train_classifier(cfg)
    assert not Path(cfg.work_dir).exists()


def test_the_table_is_shown_when_the_export_fails(make_config: Any, monkeypatch: Any, capsys: Any) -> None:

    def fail(*_: Any) -> None:
        raise ConfigError("no such thing")

    monkeypatch.setattr(training, "export_run", fail)
    cfg = make_config(quant_transformer=QUANTIZED, total_epochs=1, export=dict(verify=True))
    with pytest.raises(ConfigError, match="no such thing"):
        train_classifier(cfg)
    assert "quantized top-1" in capsys.readouterr().out
    summary = json.loads((Path(cfg.work_dir) / "summary.json").read_text())
    assert "integer" not in summary and Path(summary["checkpoint"]).is_file()

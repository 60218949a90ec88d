"""benchmarks/qat_step.py and benchmarks/runner_epoch.py: names of variants, tables, and that they run."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lbitcls.quant.kernels.selection import restored_kernels


@pytest.fixture
def scripts(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    return {name: importlib.import_module(name) for name in ("steps", "qat_step")}


def _arguments(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, *given: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["qat_step.py", *given])
    return scripts["qat_step"].read_arguments()


def test_names_of_variants(scripts: dict[str, ModuleType]) -> None:
    parse = scripts["steps"].parse_kind
    assert parse("float") == ("float", "float32", False, False, False)
    assert parse("integer-int8-compiled") == ("integer", "int8", False, False, True)
    assert parse("plain-autocast-channels_last-compiled") == ("plain", "float32", True, True, True)


@pytest.mark.parametrize(
    "name", ["", "int8", "fused-int8", "float-bf16", "integer-float32", "integer-compiled-autocast", "fused-compiled-x"]
)
def test_what_is_no_variant(scripts: dict[str, ModuleType], name: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a variant"):
        scripts["steps"].parse_kind(name)


def test_default_variants(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts["qat_step"], "can_compile", lambda device_type: True)
    given = ("--kernels", "fused", "integer", "--gradients", "float32", "bf16", "--channels-last")
    args = _arguments(scripts, monkeypatch, *given, "--methods", "LSQ", "DSQ")
    quantized = {name for name in args.variants if not name.startswith("float")}
    assert quantized == {"fused", "fused-channels_last", "integer-channels_last"} | {
        f"{kind}{rest}" for kind in ("integer", "integer-bf16") for rest in ("", "-compiled")
    }
    assert {"float", "float-compiled", "float-autocast-channels_last-compiled"} <= set(args.variants)
    rows = scripts["qat_step"].labels(args)
    assert rows["DSQ integer-bf16"] == ("DSQ", "integer-bf16") and rows["float"] == (None, "float")
    assert len(rows) == len(args.variants) + len(quantized)  # each quantized one for both methods


def test_batch_size_depends_on_the_model(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [_arguments(scripts, monkeypatch, "--model", name).batch for name in ("resnet20", "mobilenet_v2")]
    assert found == [128, 16]


def test_table(scripts: dict[str, ModuleType]) -> None:
    rows = [
        dict(variant="float", milliseconds=10.04, to_eager=1.0, saved_activations=1.0),
        dict(variant="bound", milliseconds=4.0, to_eager=0.4),
    ]
    assert scripts["qat_step"].show(rows, True).splitlines() == [
        "| variant | ms | to eager | saved |",
        "|---|---|---|---|",
        "| float | 10.0 | 1.00 | 1.00 |",
        "| bound | 4.0 | 0.40 |  |",
    ]


def _steps(repo_root: Path, folder: Path, *given: str) -> dict[str, dict[str, float]]:
    script, out = repo_root / "benchmarks" / "qat_step.py", folder / "out.json"
    command = [sys.executable, str(script), "--repeats", "1", "--json", str(out), *given]
    subprocess.run(command, check=True, capture_output=True)
    return {row["variant"]: row for row in json.loads(out.read_text())["rows"]}


def test_steps_run(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--batch", "16", "--repeats", "1", "--variants", "plain", "float-autocast-channels_last")
    args, script = _arguments(scripts, monkeypatch, *given), scripts["qat_step"]
    with restored_kernels():
        rows = script.measure(args)
        found = {row["variant"]: row for row in [*rows, *script.bounds(args, rows)]}
    assert list(found) == ["float", "LSQ plain", "float-autocast-channels_last", "pass"]
    assert all(row["milliseconds"] > 0 and row["to_eager"] > 0 for row in found.values())
    saved = {row["variant"]: row["saved_activations"] for row in rows}
    assert saved["float-autocast-channels_last"] < 0.7 < saved["float"] == 1 < saved["LSQ plain"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_integer_steps_run(repo_root: Path, tmp_path: Path) -> None:
    names = [f"integer{rest}" for rest in ("", "-bf16", "-int8", "-compiled")]
    rows = _steps(repo_root, tmp_path, "--batch", "16", "--rss", "--gradients", "bf16", "--variants", *names)
    assert list(rows) == ["float", *(f"LSQ {name}" for name in names), "pass", "bound", "bound-bf16"]
    assert all(row["milliseconds"] > 0 for row in rows.values())
    assert 0 < rows["bound-bf16"]["to_eager"] and rows["float"]["peak"] == 1
    assert all(rows[f"LSQ {name}"]["peak_mib"] > 1 for name in names)


@pytest.mark.slow
def test_epoch_runs(repo_root: Path, tmp_path: Path, shared_data: Path) -> None:
    script, out = repo_root / "benchmarks" / "runner_epoch.py", tmp_path / "out.json"
    command = [sys.executable, str(script), "--data-root", str(shared_data), "--iterations", "4", "--json", str(out)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(out.read_text())
    assert result["iterations"] == 4 and f"median {result['median']:.3f}" in printed
    assert result["epoch"] > 0 and result["later"] > 0

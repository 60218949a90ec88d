"""Timing: turns of the files, and the baseline that they are compared with."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from lbitcls.deploy.runtime import benchmark
from lbitcls.deploy.runtime.benchmark import cpu_name, time_models
from lbitcls.deploy.runtime.engines.openvino import OpenVINOEngine
from lbitcls.deploy.runtime.metadata import ModelInfo
from lbitcls.utils.errors import CheckpointError, ConfigError


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_TURN", 0.001)
    monkeypatch.setattr(benchmark, "_WARM_UP", 0.001)


@pytest.fixture
def files(write_onnx: Any, info: ModelInfo) -> list[str]:
    """An integer and a float exported model, according to their metadata."""
    integer = dataclasses.replace(info, bits="W4A4", layers=[dict(name="fc")])
    return [str(write_onnx("float.onnx", info)), str(write_onnx("integer.onnx", integer))]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_row_for_each_batch_size_and_file(files: list[str], engine: str) -> None:
    seen = time_models(files, engine=engine, threads=1, batches=(1, 3), repeats=3)
    assert [(t.batch, t.file, t.bits) for t in seen.timings] == [
        (batch, path, bits) for batch in (1, 3) for path, bits in zip(files, ("float", "W4A4"))
    ]
    assert seen.baseline == files[0] and seen.engine.startswith(f"{engine} 2" if engine == "openvino" else engine)
    assert seen.cpu == cpu_name() != "" and seen.threads == 1 and seen.cores >= 1
    for timing, base in zip(seen.timings, [seen.timings[0]] * 2 + [seen.timings[2]] * 2):
        assert 0 < timing.median_ms <= timing.p90_ms
        assert timing.images_per_second == pytest.approx(1000 * timing.batch / timing.median_ms)
        assert timing.ratio == pytest.approx(timing.median_ms / base.median_ms)
        assert timing.precision == "f32" and timing.size_kib > 0.5


def test_ratios_and_statistics(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a manual clock: the integer model takes 1 ms, the float model 2 ms, every third call 4 times as long."""
    now, calls = [0.0], dict.fromkeys(files, 0)
    order: list[str] = []

    class Slow:
        def __init__(self, path: str, **known: Any) -> None:
            opened = real(path, threads=1)
            self.__dict__.update(vars(opened), name=opened.name, version=opened.version, **known)

        def predict(self, images: np.ndarray) -> None:
            path = str(self.path)
            calls[path] += 1
            order.append(path)
            now[0] += (2e-3 if path == files[0] else 1e-3) * (4 if calls[path] % 3 == 0 else 1)

    real = benchmark.load
    monkeypatch.setattr(benchmark, "load", lambda path, *_: Slow(path))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    seen = time_models(files, batches=(5,), repeats=9)
    medians = {t.file: t.median_ms for t in seen.timings}
    assert medians == pytest.approx({files[0]: 2.0, files[1]: 1.0})
    assert [t.p90_ms for t in seen.timings] == pytest.approx([8.0, 4.0])
    assert seen.timings[1].ratio == pytest.approx(0.5)
    assert seen.timings[1].images_per_second == pytest.approx(5000)
    assert order == files * 10, "the files take turns, after a warm-up"


def test_the_baseline(files: list[str], write_onnx: Any) -> None:
    foreign = str(write_onnx("foreign.onnx"))
    for paths, baseline in (
        ([files[1], files[0], foreign], files[0]),
        ([files[1], foreign], foreign),
        ([files[1]], None),
    ):
        seen = time_models(paths, threads=1, batches=(1,), repeats=1)
        assert seen.baseline == baseline
        assert [t.ratio is None for t in seen.timings] == [baseline is None] * len(paths)


def test_bf16_beside(files: list[str]) -> None:
    if not OpenVINOEngine.supports("bf16"):
        pytest.skip("this CPU does not support bf16")
    seen = time_models(files, threads=1, batches=(1,), repeats=1, bf16=True)
    assert [(t.file, t.precision) for t in seen.timings] == [
        (files[0], "f32"),
        (files[1], "f32"),
        (files[0], "bf16"),
    ]
    assert seen.timings[0].ratio == 1.0


def test_mistakes(files: list[str], write_onnx: Any) -> None:
    with pytest.raises(ConfigError, match="--batch must be integers ≥ 1; got 0"):
        time_models(files, batches=(0,))
    with pytest.raises(ConfigError, match="--repeats must be integers ≥ 1"):
        time_models(files, repeats=0)
    with pytest.raises(ConfigError, match=r"--batch 1,000,000,000: .*allows at most [\d,]+ images \(3, 6, 5\)"):
        time_models(files, batches=(1, 10**9), threads=1)
    with pytest.raises(ConfigError, match="--repeats must be at most 100,000"):
        time_models(files, repeats=10**6)
    with pytest.raises(ConfigError, match="same images.*other"):
        time_models([*files, write_onnx("other.onnx", shape=["N", 3, 7, 7])], batches=(1,), threads=1)
    with pytest.raises(ConfigError, match="leaves the image size free"):
        time_models([write_onnx("free.onnx", shape=["N", 3, "H", "W"])], batches=(1,), threads=1)
    with pytest.raises(CheckpointError, match=r"Did you mean 'float\.onnx'"):
        time_models([files[0].replace("float", "flaot")])

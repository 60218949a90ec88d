"""Kernels of delayed batch normalization: accuracy, agreement of C++ and formulas, threads, compilers that fail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from delayed import Residual, check, prepared, step
from torch import Tensor

from lbitcls.quant.kernels import native, norm
from lbitcls.quant.kernels.norm import Clip, Grid
from lbitcls.quant.quantizers.lsq import LSQ

pytestmark = pytest.mark.usefixtures("integer_kernels")


def test_statistics_are_as_accurate_as_those_of_nchw(kernels: str) -> None:
    z = torch.randn(8, 5, 33, 31) * torch.tensor([1e-3, 1, 1, 100, 1]).view(1, 5, 1, 1)
    z += torch.tensor([1, 0, 1e3, 1e4, -7]).view(1, 5, 1, 1)
    one, zero = torch.ones(5), torch.zeros(5)
    ours = norm.statistics(z.contiguous(memory_format=torch.channels_last), one, zero, 1e-9)
    exact = z.double().movedim(1, 0).flatten(1)
    var, mean = torch.var_mean(z.movedim(1, 0).flatten(1), 1, correction=0)
    for got, theirs, expected in (
        (ours[0], mean, exact.mean(1)),
        (ours[1], var, exact.var(1, correction=0)),
        (ours[2], (var + 1e-9).rsqrt(), (exact.var(1, correction=0) + 1e-9).rsqrt()),
    ):
        size = expected.abs() + exact.std(1)
        assert ((got - expected).abs() / size <= ((theirs - expected).abs() / size).clamp_min(2e-7)).all()


def kernel_results(every: bool = True) -> list[Tensor]:
    """Return all results; without `every`, the backward sums of each kind of steps for one kind of clip."""
    torch.manual_seed(0)
    results = []
    for shape in ((3, 5, 7, 9), (8, 16, 32, 32), (2, 300, 3, 3)):
        z, shortcut, grad, grad_out = (
            torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(4)
        )
        stats = norm.statistics(z, torch.rand(shape[1]), torch.randn(shape[1]), 1e-5)
        grid = Grid(LSQ.formula, tuple(torch.tensor([0.2, -3, 12])), torch.tensor(-3.0), 15)
        results.append(stats)
        for number, clip in enumerate((Clip(), Clip(torch.inf), Clip(1.5))):
            out = torch.empty_like(z)
            scratch, undefined = norm.activate_codes(z, shortcut, out, stats, clip, grid)
            codes = scratch.clone()
            other = torch.empty_like(z)
            norm.activate(z, None, other, stats, clip)
            results += [out, codes, other]
            kinds = (
                (out, grad.clone(), grad_out, stats, clip, grid, torch.uint8),
                (None, grad.clone(), None, stats, clip, grid, torch.bfloat16),
                (None, grad.clone(), grad_out, stats, clip, grid),
                (out, None, grad_out, stats, clip),
            )
            for given in kinds if every else kinds[number::3]:
                sums = norm.backward_sums(z, *given)
                results += [t.clone() for t in (*sums[:3], *sums.parameters) if t is not None]
                results.append(norm.backward_input(z, sums.grad, torch.empty_like(z), stats, sums.rows))
            assert not undefined
    return results


def test_threads_change_nothing() -> None:
    if native.library() is None:
        pytest.skip("no C++ compiler: install g++, or name one in CXX")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kernel_results())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def agree(monkeypatch: pytest.MonkeyPatch, every: bool = True) -> None:
    ours = kernel_results(every)
    monkeypatch.setattr(native, "library", lambda: None)
    for got, expected in zip(ours, kernel_results(every), strict=True):
        assert got.dtype is expected.dtype and got.shape == expected.shape
        different = (got.double() - expected.double()).abs() > 1e-4 * expected.double().abs().mean()
        assert different.sum() <= 1e-4 * got.numel() + (got.numel() < 1e4 and 1)  # ties


def test_kernels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is None:
        pytest.skip("no C++ compiler: install g++, or name one in CXX")
    agree(monkeypatch)


@pytest.mark.slow
def test_compiled_kernels_agree(compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of clip and each kind of steps once: compiling all pairs takes most of a minute longer."""
    agree(monkeypatch, every=False)


def test_two_threads_at_once(residual: tuple[Residual, Tensor]) -> None:
    model, x = residual
    expected = step(model, x, "integer")[1]
    results: list[dict[str, Tensor]] = []
    threads = [threading.Thread(target=lambda: results.extend(step(model, x, "integer")[1] for _ in range(5)))] * 1
    threads += [threading.Thread(target=lambda: results.extend(step(model, x, "integer")[1] for _ in range(5)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 10
    assert all(torch.equal(got[name], expected[name]) for got in results for name in expected)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(native, "cache_folder", lambda kind: tmp_path / kind)
    native.library.cache_clear()
    yield tmp_path / "kernels"
    native.library.cache_clear()


@pytest.mark.parametrize("broken", ["fails", "lies", "missing"])
def test_a_broken_compiler(
    broken: str,
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """One warning, and the formulas run."""
    end = "exit 1" if broken == "fails" else 'for last; do :; done; echo > "$last"'  # the last argument is the result
    script = tmp_path / "c++"
    script.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit 0\n{end}\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script) if broken != "missing" else "no-such-compiler")
    monkeypatch.setattr(logging.getLogger("lbitcls"), "propagate", True)
    x = torch.randn(4, 3, 8, 8)
    with caplog.at_level(logging.WARNING, "lbitcls"):
        check(prepared(Residual(), x), x)
    assert len(caplog.records) == 1


def test_wrong_kernels_are_not_used(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_built", lambda compiler: Path())
    monkeypatch.setattr(native, "_load", lambda path: loaded)
    loaded: Any = type("Kernels", (), {name: lambda *_: 0 for name in native._ARGUMENTS} | {})
    for name in native._ARGUMENTS:
        setattr(loaded, name, staticmethod(lambda *_: 0))
    with torch.no_grad():
        assert native.library() is None


def test_a_damaged_library_in_the_cache_is_built_again(empty_cache: Path) -> None:
    compiler = native.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler: install g++, or name one in CXX")
    built = native._built(compiler)
    built.write_bytes(built.read_bytes()[:100])
    assert native.library() is not None and built.stat().st_size > 100


def test_a_user_without_a_home_folder(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def homeless(kind: str) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(native, "cache_folder", homeless)
    if native.find_compiler() is not None:
        assert native.library() is None and "could not determine the home directory" in caplog.text

"""Fixtures of integer training: kernels with and without C++, a residual network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lbitcls.quant.kernels import machine, native, norm_autograd, selection

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for the helpers of this folder
from delayed import Residual, prepared


@pytest.fixture
def integer_kernels(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Run integer kernels with uncompiled formulas; with `compiler`, compiled ones."""
    if machine.find_obstacle():
        pytest.skip("this machine multiplies no 8-bit integers")
    if "compiler" not in request.fixturenames:
        monkeypatch.setattr(selection, "fused_now", lambda: False)
    with selection.restored_kernels():
        selection._active = "integer"
        yield


@pytest.fixture(params=["C++", "formulas"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with the C++ kernels and without."""
    if request.param == "formulas":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C++ compiler: install g++, or name one in CXX")
    return request.param


@pytest.fixture
def residual(integer_kernels: None) -> tuple[Residual, Tensor]:
    x = torch.randn(4, 3, 8, 8)
    model: Any = prepared(Residual(), x)
    return model, x


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the fused function."""
    calls: list[Any] = []
    forward = norm_autograd.Product.forward
    monkeypatch.setattr(norm_autograd.Product, "forward", lambda *given: calls.append(given) or forward(*given))
    return calls

"""The C++ compiler of the kernels: its search, a command with arguments, and one warning without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbitcls.quant.kernels import native, selection


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A compiler that writes its arguments, one a line, into its result."""
    monkeypatch.setattr(native, "cache_folder", lambda kind: tmp_path / kind)
    selection.can_compile.cache_clear()
    path = tmp_path / "a folder" / "c++"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\nfor last; do :; done\ntest "$last" = --version || printf "%s\\n" "$@" > "$last"\n')
    path.chmod(0o755)
    yield path
    selection.can_compile.cache_clear()


def test_a_command_with_arguments(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"'{script}' -m64 -DNAME='a b'")
    compiler = native.find_compiler()
    assert compiler == [str(script), "-m64", "-DNAME=a b"] and selection.can_compile("cpu")
    given = native._built(compiler).read_text().splitlines()
    assert given[:2] == compiler[1:] and set(map(str, native.SOURCES)) <= set(given)
    assert native._built(compiler) != native._built(compiler[:1])  # other arguments, another library


@pytest.mark.parametrize("command", ["no-such-compiler -m64", "", " ", "g++ 'open"])
def test_a_command_that_names_no_compiler(
    command: str, script: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", command)
    assert native.find_compiler() is None and not selection.can_compile("cpu")
    native.library.cache_clear()
    assert native.library() is native.library() is None
    native.library.cache_clear()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "cannot be built: there is no C++ compiler (CXX names one, else g++ or clang++" in record.getMessage()


def test_a_compiler_that_takes_too_long(
    script: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script.write_text("#!/bin/sh\necho slow >&2\nsleep 9 >/dev/null 2>&1\n")
    monkeypatch.setenv("CXX", f"'{script}'")
    monkeypatch.setattr(native, "TIMEOUT", 0.2)
    native.library.cache_clear()
    assert native.library() is None and "timed out after 0.2 seconds" in caplog.text
    native.library.cache_clear()


TRAINED = """
import torch
from torch import nn
from lbitcls.quant.kernels import active_kind, native
from lbitcls.quant.methods import build_quant_layer

layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(3, 8, 3)).train()
layer(torch.randn(4, 3, 8, 8)).sum().backward()
print(active_kind(), native.library() is not None)
"""


@pytest.mark.slow
def test_kernels_are_compiled_by_a_command_with_arguments(best_kernels: str, tmp_path: Path) -> None:
    command = f"{(native.find_compiler() or [''])[0]} -pthread"
    env = {**os.environ, "CXX": command, "XDG_CACHE_HOME": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", TRAINED], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [best_kernels, "True"], done.stderr

"""Fixtures of every test: where real data lies, one thread, seeded generators, a work directory."""

from __future__ import annotations

import logging
import os

# Before torch is first imported, here and in processes that tests start: two test workers share two cores.
os.environ["OMP_NUM_THREADS"] = "1"

import functools
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from lbitcls import registry
from lbitcls.quant import methods
from lbitcls.quant.kernels import machine, selection
from lbitcls.utils.logging import get_logger

ROOT = Path(__file__).resolve().parent.parent

for number in (signal.SIGINT, signal.SIGHUP):  # ignored in the background and under nohup, also in what tests start
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
torch.set_num_threads(1)
selection.select_kernels("plain")  # where a test selects no others: compiling takes seconds
settings.register_profile("lbitcls", deadline=None, derandomize=True, database=None)
settings.load_profile("lbitcls")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds `lbitcls/`, `tools/` and `configs/`."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (`LBITCLS_DATA`, or beside the repository); skips the test without one."""
    given = os.environ.get("LBITCLS_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (LBITCLS_DATA names a folder that holds it)")
    return folder


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    """An empty folder for what a run writes."""
    folder = tmp_path / "work_dir"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips the test where nothing can be compiled for the CPU."""
    if not selection.can_compile("cpu"):
        pytest.skip("no C++ compiler: install g++ (with python3-dev), or name one in CXX")


@pytest.fixture(scope="session")
def best_kernels(compiler: None) -> str:
    """The kernels that `auto` takes on this machine's CPU."""
    return "fused" if machine.find_obstacle() or not machine.integers_are_fast() else "integer"


@pytest.fixture
def forget_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test registers is forgotten at its end."""
    for found in vars(registry).values():
        if isinstance(found, registry.Registry):
            found.names()  # all modules are imported now, so that no name of theirs is forgotten
            monkeypatch.setattr(found, "_module_dict", dict(found._module_dict))
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_table_of_operators() -> None:
    """For every model PyTorch's exporter makes the same table of ONNX functions: half the time of a small one.

    After the first test that exports, a process has one table for each opset.
    """
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    tables = getattr(exporter, "ONNXRegistry", None)
    make = getattr(tables, "from_torchlib", None)
    if tables is not None and make is not None and not hasattr(make, "cache_info"):
        tables.from_torchlib = staticmethod(functools.cache(make))


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command sets the package's logger up for its process; each test begins without what others set up.

    What a fixture of a module or of the session set up, before this one, is forgotten too.
    """
    _forget_log()
    yield
    _forget_log()


def _forget_log() -> None:
    logger = get_logger()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True

"""The examples in the docstrings run and give what they say."""

from __future__ import annotations

import copy
import doctest
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import numpy as np
import pytest
import torch

import lbitcls
from lbitcls import registry
from lbitcls.models import build_classifier
from lbitcls.utils import Config
from lbitcls.utils.logging import get_logger

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "configs" / "quickstart" / "digits_lsq_4w4f.py"
MODULES = sorted(info.name for info in pkgutil.walk_packages(lbitcls.__path__, "lbitcls."))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def has_examples(name: str) -> bool:
    """Whether `>>>` is in the source of a module, which is not imported for that."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return ">>> " in Path(spec.origin).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """The quickstart's classifier; examples get copies."""
    torch.manual_seed(0)
    return build_classifier(Config.fromfile(QUICKSTART).model)


@pytest.fixture
def names(forget_registrations: None) -> dict[str, object]:
    """What an example may use without saying where it is from."""
    registries = {key: value for key, value in vars(registry).items() if key.isupper()}
    cfg = Config.fromfile(QUICKSTART)
    return {**registries, "np": np, "torch": torch, "nn": torch.nn, "cfg": cfg, "logger": get_logger()}


@pytest.mark.parametrize("name", [name for name in MODULES if has_examples(name)])
def test_examples_run(
    name: str, names: dict, network: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An example stands where a user stands, but writes elsewhere.
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    found = doctest.DocTestFinder().find(importlib.import_module(name), extraglobs=names)
    assert any(example.examples for example in found)
    for example in found:
        example.globs["model"] = copy.deepcopy(network)
        runner.run(example)
    assert runner.failures == 0


def test_every_module_is_imported() -> None:
    for name in MODULES:
        importlib.import_module(name)

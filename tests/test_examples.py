"""The examples in the docstrings run and give what they say."""

from __future__ import annotations

import copy
import doctest
import importlib
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
MODULES = sorted(info.name for info in pkgutil.walk_packages(lbitcls.__path__, "lbitcls."))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def names(forget_registrations: None) -> dict[str, object]:
    """What an example may use without saying where it is from."""
    cfg = Config.fromfile(ROOT / "configs" / "quickstart" / "digits_lsq_4w4f.py")
    model = build_classifier(cfg.model)
    registries = {key: value for key, value in vars(registry).items() if key.isupper()}
    return {**registries, "np": np, "torch": torch, "nn": torch.nn, "cfg": cfg, "model": model, "logger": get_logger()}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, names: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An example stands where a user stands, but writes elsewhere.
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in doctest.DocTestFinder().find(importlib.import_module(name), extraglobs=names):
        example.globs["model"] = copy.deepcopy(names["model"])
        runner.run(example)
    assert runner.failures == 0

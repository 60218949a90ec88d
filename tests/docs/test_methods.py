"""Every config in docs/methods.md builds quantized layers that train; its pictures are there and can be drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from method_tables import BLOCK, written
from torch import nn

from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate, named_quantizers, regularization
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.methods import METHODS
from lbitcls.registry import QUANT_LAYERS

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "methods.md").read_text(encoding="utf-8")
CONFIGS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
RESULTS = (DOCS / "results" / "cifar10_short.md").read_text(encoding="utf-8")
PICTURES = re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT)


def section_of(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names["quant_transformer"]


def method_of(code: str) -> str:
    return section_of(code)["quan_policy"]["Conv2d"]["type"].removesuffix("Conv")


@pytest.mark.parametrize("code", CONFIGS, ids=method_of)
def test_config_builds_layers_that_train(code: str) -> None:
    model = build_classifier(
        dict(
            type="ImageClassifier",
            backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=10, in_channels=64, topk=(1,)),
        )
    )
    model = build_mtransformer(section_of(code))(model)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert layers
    assert all(isinstance(layer, QuantLayer) for layer in layers)
    img, label = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    calibrate(model.train(), [img])
    loss = model(img, gt_label=label)["loss"] + regularization(model)
    loss.backward()
    assert loss.isfinite()
    learned = [p for _, quantizer in named_quantizers(model) for p in quantizer.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [*learned, *model.parameters()])


def test_every_method_has_its_section() -> None:
    QUANT_LAYERS.names()
    assert {method_of(code) for code in CONFIGS} == {
        name for name, method in METHODS.items() if method.weight.__module__.startswith("lbitcls.")
    }


def test_pictures_are_those_that_the_script_draws() -> None:
    script = (DOCS / "plot_methods.py").read_text(encoding="utf-8")
    drawn = re.findall(r'^    "(\w+)": \w+,$', script, re.MULTILINE)
    assert PICTURES
    assert sorted(PICTURES) == sorted(f"methods/{name}.svg" for name in drawn)
    assert {path.stat().st_size < 60_000 for path in map(DOCS.joinpath, PICTURES)} == {True}


def test_the_results_of_every_method_are_the_measured_ones() -> None:
    assert written(TEXT) == TEXT, "docs/methods.md is not as the results are: python docs/method_tables.py"
    shown = {match[2]: match[0] for match in BLOCK.finditer(TEXT)}
    assert shown.keys() == {method_of(code) for code in CONFIGS}
    measured = re.findall(
        r"^\| `[^`]+` \| (\w+) \| (\w+) \| (\d+) \| [\d.]+ \| ([\d.]+) \| ([-+.\d]+) \|$", RESULTS, re.M
    )
    assert len(measured) > 20
    for method, bits, epochs, top1, gap in measured:
        for table in shown.values() if method == "float" else (shown[method],):
            assert f"| {bits} | {epochs} | {top1} | {'' if method == 'float' else f'{gap} '}|\n" in table
    assert sum(table.count("\n| W") for table in shown.values()) == len(measured) - 1

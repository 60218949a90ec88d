"""Concatenations of integers: quantization moves to the branches, and no value changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lbitcls.deploy.verification.placement import executed_operations

Quantized = Callable[..., nn.Module]
Exports = Callable[..., Any]


class Fire(nn.Module):
    """Two branches with ReLU, concatenated; with `again`, one of them is used a second time."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1)
        self.last = nn.Conv2d(9, 6, 1)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x).relu(), self.right(x).relu()
        y = self.last(torch.cat([left, right], 1)).relu().mean((2, 3))
        return y[:, :4] + left.mean((2, 3)) if self.again else y


def images() -> Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exported(quantized: Quantized, exports: Exports, bits: int, again: bool = False) -> Any:
    torch.manual_seed(0)
    return exports(quantized(Fire(again), "LSQ", bits, bits, images()), images())


def test_branches_are_quantized(quantized: Quantized, exports: Exports) -> None:
    for bits in (4, 8):
        report = exported(quantized, exports, bits)
        graph = onnx.load(report.path).graph
        concat = next(node for node in graph.node if node.op_type == "Concat")
        makers = {output: node.op_type for node in graph.node for output in node.output}
        assert [makers[name] for name in concat.input] == ["DequantizeLinear"] * 2
        executed = executed_operations(report.path)
        assert {f["runtimePrecision"] for f in executed if f["layerType"] == "Concatenation"} == {"u8"}
        branches = [f["originalLayersNames"] for f in executed if f["layerType"] == "Convolution"][:2]
        assert all("Relu" not in names for names in branches)  # part of the quantization


def test_a_branch_with_other_users_is_quantized_once(quantized: Quantized, exports: Exports) -> None:
    report = exported(quantized, exports, 8, again=True)
    kinds = Counter(node.op_type for node in onnx.load(report.path).graph.node)
    assert kinds["QuantizeLinear"] == 2  # the image, and the concatenation

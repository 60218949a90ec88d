"""Draw a small quantized model next to the ONNX file exported from it: the figure of docs/deployment.md.

    python docs/plot_deployment.py [--out docs/deployment.svg]

On the left are the modules that `torch.fx` finds in the model, on the right the nodes read from the file: nothing is
drawn by hand, so the figure shows what the exporter does now.
"""

from __future__ import annotations

import argparse
import operator
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from plot_methods import rounded
from torch import Tensor, fx, nn

from lbitcls.datasets import build_dataset
from lbitcls.deploy import export_model
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.layers import QuantLayer

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

COLORS = ("#1d4ed8", "#c2410c", "#047857")
INK, GREY, INTEGER = "#111827", "#6b7280", "#7e22ce"
STYLE = {"svg.hashsalt": "lbitcls", "svg.fonttype": "none", "savefig.facecolor": "white", "font.size": 7.5}
WIDTH, SIDE, HEIGHT = 2.75, 2.45, 0.66  # of the boxes on the main path and of those beside it, in units of the axes


class Block(nn.Module):
    """Network of a convolution, a second one with a skip connection around it, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.pool(x).flatten(1))


@dataclass
class Box:
    """Box of the figure.

    Attributes:
        name: Name in the `inputs` of other boxes.
        title: First line.
        detail: Second line.
        layer: Quantized layer that it belongs to; empty: none.
        inputs: Names of the boxes whose results it reads.
        integer: True if its result is stored in integers.
        beside: For a weight's box, the box next to it; None: the box is on the main path.
        row: Row, from the top.
    """

    name: str
    title: str
    detail: str = ""
    layer: str = ""
    inputs: list[str] = field(default_factory=list)
    integer: bool = False
    beside: str | None = None
    row: float = 0.0


def quantized_block() -> nn.Module:
    """Return the block with 8, 4 and 8 bits, calibrated on the package's digits; not trained."""
    torch.manual_seed(0)
    model = Block()
    normalize = dict(type="Normalize", mean=[0.305], std=[0.376])
    digits = build_dataset(dict(type="Digits", split="train", pipeline=[normalize]))
    images = torch.stack([digits[i]["img"] for i in range(64)])
    for _ in range(20):
        model(images)  # statistics of the BatchNorms

    def entry(kind: str, bits: int) -> dict[str, Any]:
        return dict(type=f"LSQ{kind}", num_bit_w=bits, num_bit_a=bits, per_channel=True)

    section = dict(
        type="ModelTransformer",
        quan_policy=dict(Conv2d=entry("Conv", 4), Linear=entry("Linear", 8)),
        special_layers=dict(layers_name=["conv1"], convert_type=[entry("Conv", 8)]),
    )
    model = build_mtransformer(section)(model).eval()
    calibrate(model, [images])
    return model


class Tracer(fx.Tracer):
    """Tracer that does not trace into quantized layers: each is one box."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QuantLayer) or super().is_leaf_module(m, module_qualified_name)


def trained_boxes(model: nn.Module, file: onnx.ModelProto) -> list[Box]:
    """Return the modules and functions of the model, in order."""
    absorbed = {t.name.partition(".scale_with_norm")[0] for t in file.graph.initializer if "with_norm" in t.name}
    boxes: list[Box] = []
    for node in Tracer().trace(model).nodes:
        box = Box(node.name, node.name, inputs=[source.name for source in node.all_input_nodes])
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, QuantLayer):
            bits = [q.num_bits for q in (module.weight_quantizer, module.input_quantizer) if q is not None]
            box.layer = str(node.target)
            box.title = f"{box.layer}: {module.method}{module.float_type.__name__.removesuffix('2d')}"
            box.detail = f"weight {bits[0]}, input {bits[1]} bits, fake quantized"
        elif module is not None:
            box.title = f"{node.target}: {type(module).__name__}"
            if isinstance(module, nn.BatchNorm2d) and boxes[-1].layer in absorbed:
                box.layer, box.detail = boxes[-1].layer, "goes into the scales and the bias"
        elif node.target in (operator.add, torch.add):
            box.title = "add"
        elif node.op == "output":
            box.title = "logits"
        boxes.append(box)
    return boxes


def file_boxes(file: onnx.ModelProto, layers: list[str]) -> list[Box]:
    """Return the nodes of the file with the values of their constants; each on the main path has a row."""
    constants = {t.name: numpy_helper.to_array(t) for t in file.graph.initializer}
    made = {output: node.name for node in file.graph.node for output in node.output}
    image = file.graph.input[0].name
    boxes, row = [Box(image, image, "float32 (N, 1, 8, 8)")], 1
    for node in file.graph.node:
        weight = node.op_type == "DequantizeLinear" and node.input[0] in constants
        box = Box(node.name, node.op_type, detail(node, constants), layer_of(node.name, layers), row=row)
        box.inputs = [made.get(name, name) for name in node.input if name not in constants and name]
        box.integer = node.op_type == "QuantizeLinear"
        if weight:
            box.beside = next(user.name for user in file.graph.node if node.output[0] in user.input)
        else:
            row += 1
        boxes.append(box)
    output = file.graph.output[0].name
    return [*boxes, Box(output, output, "float32 (N, 10)", inputs=[made[output]], row=row)]


def detail(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> str:
    """Return the constants of a node as text."""
    given = [constants[name] for name in node.input if name in constants]
    if node.op_type == "DequantizeLinear" and node.input[0] in constants:
        codes, scale = given[0], given[1]
        return f"{codes.dtype} {codes.shape}, {scale.size} scales"
    if node.op_type == "QuantizeLinear":
        return f"to {given[1].dtype}, zero point {int(given[1])}"
    if node.op_type == "Clip":
        return f"{float(given[0]):.3g} … {float(given[1]):.3g}"
    if node.op_type == "Add" and given:
        return f"bias ({given[0].size})"
    return ""


def layer_of(name: str, layers: list[str]) -> str:
    """Return the quantized layer that a node of the file is named after."""
    return next((layer for layer in layers if name.startswith((f"{layer}.", f"{layer}/")) or name == layer), "")


def align(trained: list[Box], shipped: list[Box]) -> None:
    """Set the rows on the left: a layer next to its nodes, its BatchNorm next to the bias, the rest evenly between."""
    path = [box for box in shipped if box.beside is None]
    known: dict[int, float] = {0: 0.0, len(trained) - 1: path[-1].row}
    for index, box in enumerate(trained):
        norm = "BatchNorm" in box.title
        rows = [
            other.row for other in path if box.layer and other.layer == box.layer and (other.title == "Add") == norm
        ]
        if rows:
            known[index] = sum(rows) / len(rows)
    for index, box in enumerate(trained):
        box.row = float(np.interp(index, sorted(known), [known[i] for i in sorted(known)]))


def draw(trained: list[Box], shipped: list[Box], layers: list[str]) -> Figure:
    """Draw both columns."""
    rows = max(box.row for box in shipped)
    fig = plt.figure(figsize=(8.6, 0.43 * (rows + 2.2)), layout="constrained")
    axis = fig.add_subplot()
    axis.set(xlim=(-1.85, 9.0), ylim=(rows + 0.7, -1.5))
    axis.axis("off")
    colors = dict(zip(layers, COLORS))
    for x, title, boxes in ((0.0, "the model that was trained", trained), (4.4, "the file that ships", shipped)):
        axis.text(x, -1.0, title, ha="center", va="center", fontsize=10, fontweight="bold", color=INK)
        column(axis, x, boxes, colors)
    axis.text(6.1, -1.0, "── float32", color=GREY, va="center")
    axis.text(7.3, -1.0, "━━ integers", color=INTEGER, va="center")
    return fig


def column(axis: Axes, x: float, boxes: list[Box], colors: dict[str, str]) -> None:
    """Draw the boxes of one graph below each other, with the arrows between them."""
    at = {box.name: box for box in boxes}
    above = dict(zip([box.name for box in boxes if box.beside is None][1:], [b for b in boxes if b.beside is None]))
    for box in boxes:
        center = x if box.beside is None else x + 0.5 * (WIDTH + SIDE) + 0.45
        box.row = box.row if box.beside is None else at[box.beside].row
        rectangle(axis, center, box, colors)
        if box.beside is not None:
            arrow(axis, (center - SIDE / 2, box.row), (x + WIDTH / 2, box.row), False)
    for box in boxes:
        for source in (at[name] for name in box.inputs if at[name].beside is None):
            if above.get(box.name) is source:
                arrow(axis, (x, source.row + HEIGHT / 2), (x, box.row - HEIGHT / 2), source.integer)
            else:
                edge = x - WIDTH / 2
                arrow(axis, (edge, source.row), (edge, box.row), source.integer, bend=0.28)


def rectangle(axis: Axes, x: float, box: Box, colors: dict[str, str]) -> None:
    """Draw one box with its text."""
    width, color = WIDTH if box.beside is None else SIDE, colors.get(box.layer, GREY)
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2, box.row - HEIGHT / 2),
            *(width, HEIGHT),
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=f"{color}14",
            edgecolor=color,
            linewidth=0.9,
        )
    )
    shift = 0.12 if box.detail else 0.0
    axis.text(x, box.row - shift, box.title, ha="center", va="center", color=INK)
    axis.text(x, box.row + 0.16, box.detail, ha="center", va="center", color=GREY, fontsize=6.5)


def arrow(axis: Axes, start: Any, end: Any, integer: bool, bend: float = 0.0) -> None:
    """Draw an arrow, thick where integers flow."""
    style = dict(color=INTEGER if integer else GREY, linewidth=2.2 if integer else 0.9, shrinkA=0, shrinkB=0)
    curve = f"arc3,rad={bend}"
    axis.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", mutation_scale=7, connectionstyle=curve, **style))


def picture() -> Figure:
    """Return the figure, of a file that is exported for it."""
    model = quantized_block()
    with tempfile.TemporaryDirectory() as folder:
        report = export_model(model, Path(folder, "model.onnx"), input_shape=(1, 8, 8))
        file = onnx.load(report.path)
    layers = [layer["name"] for layer in report.info.layers]
    trained, shipped = trained_boxes(model, file), file_boxes(file, layers)
    align(trained, shipped)
    return draw(trained, shipped, layers)


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "deployment.svg", metavar="FILE")
    args = parser.parse_args()
    svg = args.out.suffix == ".svg"
    with matplotlib.rc_context(STYLE):
        fig = picture()
        fig.savefig(args.out, dpi=130, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")) if svg else None)
    if svg:
        args.out.write_text(rounded(args.out.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{args.out}  {args.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

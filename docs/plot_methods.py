"""Draw each method's staircase and gradients from the package's own code, as the figures of docs/methods.md.

    python docs/plot_methods.py [--out docs/methods]

Values and gradients are those of `build_quant_layer`'s quantizers: the value and the gradient of `x` for each `x` of a
dense row, and each element's part of the gradient of the scale, offset or clip, without the factor that scales it. The
files are the same on every run with the same versions.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn

from lbitcls.quant import Quantizer, build_quant_layer
from lbitcls.quant.quantizers.dsq import soft_step

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#1d4ed8", "#c2410c", "#047857", "#7e22ce", "#6b7280"
STYLE = {
    "svg.hashsalt": "lbitcls",
    "path.simplify_threshold": 0.25,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "grid.color": "#eceef1",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def quantizer_of(entry: str, role: str, bits: int, lower: float, upper: float, **options: Any) -> Quantizer:
    """Return a quantizer as a config builds it, with the range `lower` to `upper`, in training mode."""
    cfg = {"type": entry, "num_bit_w": bits, "num_bit_a": bits, **options}
    layer = build_quant_layer(cfg, nn.Conv2d(1, 1, 1))
    quantizer: Quantizer = getattr(layer, f"{role}_quantizer")
    quantizer.initialize(torch.tensor([lower, upper]), lambda rows, _: (rows.amin(1), rows.amax(1)))
    return quantizer


def row(lower: float, upper: float, points: int = 601) -> Tensor:
    """Return equally spaced values from `lower` to `upper`."""
    return torch.linspace(lower, upper, points, dtype=torch.float64)


def curves(quantizer: Quantizer, x: Tensor, upstream: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return value and gradient of `x` under the gradient `upstream` of every value."""
    x = x.clone().requires_grad_()
    value = quantizer(x)
    value.backward(torch.full_like(value, upstream))
    assert x.grad is not None
    return value.detach(), x.grad / upstream


def parts(quantizer: Quantizer, x: Tensor, number: int = 0) -> Tensor:
    """Return each element's part of the gradient of parameter `number` of the formula (0: the scale)."""
    grid = [parameter.detach().double() for parameter in quantizer.grid(x)]
    found = []
    for element in quantizer.normalize(x).detach():
        leaf = grid[number].clone().requires_grad_()
        given = [*grid[:number], leaf, *grid[number + 1 :]]
        (gradient,) = torch.autograd.grad(quantizer.formula(element[None], None, *given).sum(), leaf)
        found.append(gradient)
    return torch.stack(found)


def figure(columns: int, rows: int = 1) -> tuple[Figure, Any]:
    """Return a figure with `columns` panels in each of `rows` rows."""
    fig, axes = plt.subplots(rows, columns, figsize=(3.15 * columns, 2.55 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.locator_params(nbins=6)
    return fig, axes if rows > 1 else axes[0]


def staircase(axis: Axes, x: Tensor, value: Tensor, title: str, name: str = "x") -> None:
    """Draw the value over `x`, next to the identity."""
    axis.plot(x, x, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="float")
    axis.plot(x, value, color=BLUE, label="quantized")
    axis.set(title=title, xlabel=name, ylabel=f"{name}̂")
    axis.legend(loc="upper left")


def gradient(axis: Axes, x: Tensor, values: Tensor, symbol: str, color: str = ORANGE, label: str = "") -> None:
    """Draw a gradient over `x`."""
    axis.plot(x, values, color=color, label=label or None)
    axis.set(title=f"gradient: {symbol}", xlabel=axis.get_xlabel() or "x")


def learned(entry: str, bits: int, factor: str, symbol: str, lower: float, upper: float, x: Tensor) -> Figure:
    """Draw weights of a method with one learned scale or clip: staircase, gradient of x, part of the parameter's."""
    quantizer = quantizer_of(entry, "weight", bits, lower, upper)
    fig, (left, middle, right) = figure(3)
    value, grad_x = curves(quantizer, x)
    staircase(left, x, value, f"weights, {bits} bits")
    gradient(middle, x, grad_x, "∂x̂/∂x")
    middle.set_ylim(-0.1, 1.2)
    divisor = quantizer.quant_max if factor == "clip" else 1
    gradient(right, x, parts(quantizer, x) / divisor, symbol, GREEN)
    return fig


def lsq() -> Figure:
    """LSQ: step 1, 3 bits."""
    return learned("LSQConv", 3, "scale", "∂x̂/∂s", -4.0, 3.0, row(-6, 6))


def lsq_plus() -> Figure:
    """LSQ+: inputs with an asymmetric range, such as those from a Swish."""
    quantizer = quantizer_of("LSQPlusConv", "input", 3, -1.0, 2.5)
    x = row(-2, 3.5)
    fig, (left, middle, right) = figure(3)
    value, grad_x = curves(quantizer, x)
    staircase(left, x, value, "inputs, 3 bits")
    gradient(middle, x, grad_x, "∂x̂/∂x")
    middle.set_ylim(-0.1, 1.2)
    gradient(right, x, parts(quantizer, x, 0), "∂x̂/∂s, ∂x̂/∂β", GREEN, "step s")
    gradient(right, x, parts(quantizer, x, 1), "∂x̂/∂s, ∂x̂/∂β", PURPLE, "offset β")
    right.legend(loc="upper left")
    return fig


def dsq() -> Figure:
    """DSQ: the soft staircase whose gradient is used, and that gradient for several α."""
    fig, (left, middle, right) = figure(3)
    x = row(-1.4, 1.4, 401)
    steep = quantizer_of("DSQConv", "weight", 3, -1.0, 1.0, alpha=0.05)
    staircase(left, x, curves(steep, x)[0], "weights, 3 bits")
    scale, _, sharpness, low, high = (t.detach().double() for t in steep.grid(x))
    v = (x / scale).clamp(low, high)
    soft = (torch.floor(v) + (soft_step(v, sharpness) + 1) / 2).clamp(low, high) * scale
    left.plot(x, soft, color=ORANGE, linewidth=1.1, label="Q_S, α = 0.05")
    left.legend(loc="upper left")
    for alpha, color in ((0.05, PURPLE), (0.2, ORANGE), (0.4, GREEN)):
        bent = quantizer_of("DSQConv", "weight", 3, -1.0, 1.0, alpha=alpha)
        gradient(middle, x, curves(bent, x)[1], "∂x̂/∂x", color, f"α = {alpha}")
    middle.set_ylim(-0.1, 2.5)
    middle.legend(loc="upper center", ncols=3, handlelength=1.2, columnspacing=1)
    usual = quantizer_of("DSQConv", "weight", 3, -1.0, 1.0)
    gradient(right, x, parts(usual, x) / usual.quant_max, "∂x̂/∂u (α = 0.2)", GREEN)
    return fig


def pact() -> Figure:
    """PACT: inputs with a learned upper clip."""
    quantizer = quantizer_of("PACTConv", "input", 3, 0.0, 2.0, signed=False)
    x = row(-1, 3)
    fig, (left, middle, right) = figure(3)
    value, grad_x = curves(quantizer, x)
    staircase(left, x, value, "inputs, 3 bits, α = 2")
    gradient(middle, x, grad_x, "∂x̂/∂x")
    gradient(right, x, parts(quantizer, x) / quantizer.quant_max, "∂x̂/∂α", GREEN)
    for axis in (middle, right):
        axis.set_ylim(-0.1, 1.2)
    return fig


def dorefa() -> Figure:
    """DoReFa: weights through tanh, and inputs."""
    fig, ((left, right), (low_left, low_right)) = figure(2, rows=2)
    x = row(-2.5, 2.5, 401)
    weights = torch.cat([x, x.new_tensor([2.6])])  # the largest weight alone has the maximum's gradient: not drawn
    value, grad_x = (t[:-1] for t in curves(quantizer_of("DoReFaConv", "weight", 3, -1.0, 1.0), weights))
    right.set_xlabel("w")
    left.plot(x, (torch.tanh(weights) / torch.tanh(weights).abs().max())[:-1], color=GREY, linewidth=1)
    left.plot(x, value, color=BLUE)
    left.legend(["tanh w / max", "quantized"], loc="upper left")
    left.set(title="weights, 3 bits", xlabel="w", ylabel="ŵ")
    gradient(right, x, grad_x, "∂ŵ/∂w")
    inputs = quantizer_of("DoReFaConv", "input", 3, 0.0, 1.0, signed=False)
    x = row(-0.5, 1.5)
    value, grad_x = curves(inputs, x)
    staircase(low_left, x, value, "inputs, 3 bits")
    gradient(low_right, x, grad_x, "∂x̂/∂x")
    for axis in (right, low_right):
        axis.set_ylim(-0.1, 1.2)
    return fig


def apot() -> Figure:
    """APoT: levels that are denser where there are more weights."""
    return clipped("APoTConv")


def uq() -> Figure:
    """UQ: the same clip with equal steps."""
    return clipped("UQConv")


def clipped(entry: str) -> Figure:
    """Draw a learned clip α = 2.5 on 4-bit weights whose mean is 0 and whose standard deviation is 1."""
    x = row(-3.2, 3.2)
    zeros = x.new_zeros(round(x.square().sum().item()) - len(x))  # weights that are not drawn make the deviation 1
    weights = torch.cat([x, zeros])
    quantizer = quantizer_of(entry, "weight", 4, -1.0, 1.0)
    quantizer.set_range(torch.tensor([-2.5]), torch.tensor([2.5]))
    fig, (left, middle, right) = figure(3)
    value, grad_x = (t[: len(x)] for t in curves(quantizer, weights))
    staircase(left, x, value, "normalized weights, 4 bits, α = 2.5")
    gradient(middle, x, grad_x, "∂x̂/∂x")
    middle.set_ylim(-0.1, 1.2)
    gradient(right, x, parts(quantizer, weights)[: len(x)] / quantizer.quant_max, "∂x̂/∂α", GREEN)
    return fig


def torch_qat() -> Figure:
    """PyTorch QAT: an affine grid over the observed range, which follows the batches."""
    quantizer = quantizer_of("TorchQATConv", "input", 3, -1.0, 2.5).eval()
    x = row(-2, 3.5)
    fig, (left, middle, right) = figure(3)
    value, grad_x = curves(quantizer, x)
    staircase(left, x, value, "inputs, 3 bits")
    gradient(middle, x, grad_x, "∂x̂/∂x")
    middle.set_ylim(-0.1, 1.2)
    observer: Any = quantizer_of("TorchQATConv", "input", 3, -1.0, 2.5).train()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(256, generator=generator) + 0.5 for _ in range(200)]
    kept = []
    for batch in batches:
        observer(batch)
        kept.append((observer.lowest.item(), observer.highest.item()))
    right.plot([b.max() for b in batches], color="#d1d5db", linewidth=0.7, label="a batch's extremes")
    right.plot([b.min() for b in batches], color="#d1d5db", linewidth=0.7)
    right.plot([low for low, _ in kept], color=PURPLE, label="min")
    right.plot([high for _, high in kept], color=GREEN, label="max")
    right.set(title="moving averages", xlabel="batch", ylim=(-4.2, 6.6))
    right.legend(loc="upper center", ncols=3, handlelength=1.2, columnspacing=1)
    return fig


def ewgs() -> Figure:
    """EWGS: LSQ's staircase, and a gradient of x that leans with the rounding error."""
    quantizer = quantizer_of("EWGSConv", "weight", 3, -4.0, 3.0, delta=1.0)
    x = row(-6, 6, 1201)
    fig, (left, middle, right) = figure(3)
    staircase(left, x, curves(quantizer, x)[0], "weights, 3 bits")
    for upstream, color, label in ((1.0, ORANGE, "∂L/∂x̂ > 0"), (-1.0, PURPLE, "∂L/∂x̂ < 0")):
        leaning = curves(quantizer, x, upstream)[1]
        leaning[1:][leaning.diff().abs() > 0.1] = torch.nan  # no line where it jumps
        gradient(middle, x, leaning, "∂x̂/∂x (δ = 1)", color, label)
    middle.set(ylim=(0.91, 1.11), xlim=(-4.6, 3.6))
    middle.legend(loc="upper center", ncols=2, handlelength=1.2, columnspacing=1)
    gradient(right, x, parts(quantizer, x), "∂x̂/∂s", GREEN)
    return fig


def n2uq() -> Figure:
    """N2UQ: uneven thresholds, even levels, and the line between them that supplies the gradients."""
    quantizer: Any = quantizer_of("N2UQConv", "input", 2, 0.0, 3.0, signed=False)
    quantizer.lengths.data.copy_(torch.tensor([0.6, 0.9, 1.8]))
    x = row(-0.5, 4)
    fig, (left, middle, right) = figure(3)
    value, grad_x = curves(quantizer, x)
    staircase(left, x, value, "inputs, 2 bits, s = 1")
    left.plot(x, quantizer.normalize(x).detach().clamp(0, 3), color=ORANGE, linewidth=1.1, label="p(x)")
    left.legend(loc="upper left")
    gradient(middle, x, grad_x, "∂x̂/∂x")
    lengths = [torch.autograd.grad(quantizer(element[None]).sum(), quantizer.lengths)[0] for element in x]
    by_length = torch.stack(lengths) * quantizer.quant_max**0.5  # without the factor of one feature
    for i, color in enumerate((GREEN, PURPLE, GREY)):
        gradient(right, x, by_length[:, i], "∂x̂/∂a", color, f"a_{i + 1}")
    right.legend(loc="lower left")
    return fig


FIGURES: dict[str, Callable[[], Figure]] = {
    "lsq": lsq,
    "lsq_plus": lsq_plus,
    "dsq": dsq,
    "pact": pact,
    "dorefa": dorefa,
    "apot": apot,
    "uq": uq,
    "torch_qat": torch_qat,
    "ewgs": ewgs,
    "n2uq": n2uq,
}


def rounded(svg: str) -> str:
    """Return the figure with its paths' coordinates in hundredths of a point, which makes the file smaller."""
    paths = re.compile(r' d="[^"]*"')
    number = re.compile(r"-?\d+\.\d+")
    text = paths.sub(lambda d: number.sub(lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), d[0]), svg)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def main() -> None:
    """Write every figure as SVG."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "methods", metavar="DIR")
    parser.add_argument("--format", default="svg", choices=("svg", "png"))
    args = parser.parse_args()
    svg = args.format == "svg"
    args.out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            path = args.out / f"{name}.{args.format}"
            fig = draw()
            fig.savefig(path, dpi=110, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")) if svg else None)
            plt.close(fig)
            if svg:
                path.write_text(rounded(path.read_text(encoding="utf-8")), encoding="utf-8")
            print(f"{path}  {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

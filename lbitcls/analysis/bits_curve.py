"""Figure of a search for bits: the errors that each cost allows, and the assignment that was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lbitcls.analysis.figures import BLUE, GREY, ORANGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]
NAMED = 30
"""Number of layers up to which their names are written."""


def draw_bits(
    curve: Sequence[Point], uniform: Mapping[int, Point], chosen: Point, unit: str, bits: Mapping[str, int]
) -> Figure:
    """Draw the trade-off between cost and error, and the bits of each layer.

    Args:
        curve: Cost and sum of errors of the best assignments, by cost.
        uniform: The same with equal bits in all layers, by these bits.
        chosen: The same of the chosen assignment.
        unit: What the cost counts.
        bits: Chosen bits by layer, in forward order.
    """
    with style():
        figure = new_figure(6.4, 6.2)
        trade, layers = figure.subplots(2, 1)
        trade.plot(*zip(*curve), color=BLUE, label="bits by layer")
        trade.plot(*zip(*uniform.values()), "s", color=GREY, markersize=4, label="the same bits everywhere")
        for number, point in uniform.items():
            trade.annotate(f"{number} bits", point, xytext=(5, 4), textcoords="offset points", color=GREY, fontsize=8)
        trade.plot(*chosen, "o", color=ORANGE, label="chosen")
        trade.set_yscale("log")
        trade.set_title("Cost and error", loc="left", fontweight="bold")
        trade.set_xlabel(unit)
        trade.set_ylabel("sum of the layers' errors")
        trade.legend()
        layers.bar(range(len(bits)), list(bits.values()), color=BLUE)
        layers.set_title("Bits of each layer, in forward order", loc="left", fontweight="bold")
        layers.set_yticks(range(0, max(bits.values()) + 1))
        names = list(bits) if len(bits) <= NAMED else [""] * len(bits)
        layers.set_xticks(range(len(bits)), names, rotation=90, fontsize=6)
    return figure

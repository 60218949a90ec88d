"""Figure of a learning-rate range test: the loss against the rate, with the suggested rate marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbitcls.analysis.figures import BLUE, GREY, ORANGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_range_test(
    rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], suggestion: float | None
) -> Figure:
    """Draw the losses of a range test.

    Args:
        rates: Learning rates (N,), ascending.
        losses: Loss at each rate.
        smooth: Smoothed losses, from which the suggestion follows.
        suggestion: Suggested rate, one of `rates`, or None.
    """
    with style():
        figure = new_figure(6.4, 3.9)
        panel = figure.subplots()
        panel.plot(rates, losses, color=GREY, alpha=0.5, linewidth=1, label="loss of the step")
        panel.plot(rates, smooth, color=BLUE, label="smoothed")
        if suggestion is not None:
            place = list(rates).index(suggestion)
            panel.axvline(suggestion, color=ORANGE, linestyle=":", linewidth=1.2)
            panel.plot([suggestion], [smooth[place]], "o", color=ORANGE, label=f"suggested: {suggestion:.2g}")
        low, high = min(smooth), max(smooth[: smooth.index(min(smooth)) + 1])
        panel.set_ylim(low - 0.15 * (high - low) - 1e-3, high + 0.6 * (high - low) + 1e-3)  # not the explosion
        panel.set_xscale("log")
        panel.set_title("Learning-rate range test", loc="left", fontweight="bold")
        panel.set_xlabel("learning rate (optimizer.lr)")
        panel.set_ylabel("training loss")
        panel.legend()
    return figure

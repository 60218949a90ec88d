"""Illnesses of quantized networks: for each a rule on the vital signs, and what to say and do.

`diagnose` is what the hook in training, `lbitcls doctor` and the analysis page share. Of one grid only the first
illness that applies is reported, because it explains those after it: a scale that collapsed also clips most values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lbitcls.analysis.vital_signs import GridSigns, NormSigns, VitalSigns

FATAL, COSTLY, NOTABLE = 3, 2, 1
"""Severities: the layer does not work; it costs accuracy; worth a try."""

LOST = 0.01  # share of the signal below zero
COLLAPSED = 20.0  # reach
RUNAWAY = 1 / 8  # reach
CLIPPED = 0.5  # share of the nonzero values
OSCILLATING = 0.1  # share of a layer's weights
MOST_BITS = 4  # of weights whose oscillation matters: with more, a step of the optimizer passes several integers
AT_BORDERS = 0.25  # share of a layer's weights; spread evenly 0.1
SHIFT = 0.5  # running deviations
SPREAD = 1.5  # ratio of deviations
FIRST_SQNR = 15.0  # dB, that of 3 bits


@dataclass(frozen=True)
class Finding:
    """One illness of one layer.

    Attributes:
        illness: Name of the illness, one of `NAMES`.
        layer: Full name of the layer, or of the BatchNorm.
        part: Part of the layer: `'weight'`, `'input'` or `'statistics'`.
        severity: `FATAL`, `COSTLY` or `NOTABLE`.
        amount: Measure of the illness, larger is worse; comparable within one illness.
        sentence: Sentence that names the layer, in backticks.
        remedy: Sentence on what to do.
    """

    illness: str
    layer: str
    part: str
    severity: int
    amount: float
    sentence: str
    remedy: str

    @property
    def text(self) -> str:
        """Sentence and remedy, without backticks."""
        return f"{self.sentence} {self.remedy}".replace("`", "")


def diagnose(signs: VitalSigns) -> list[Finding]:
    """Return the findings, worst first; an empty list for a healthy network.

    Example:
        >>> diagnose(VitalSigns(grids=()))
        []
    """
    found = [_of_grid(grid, grid.layer == signs.first) for grid in signs.grids]
    found += [drifted_norm(norm) for norm in signs.norms if signs.grids]
    found += [oscillating(grid, signs.oscillating.get(grid.layer)) for grid in signs.grids if grid.role == "weight"]
    ill = [finding for finding in found if finding is not None]
    return sorted(ill, key=lambda finding: (-finding.severity, NAMES.index(finding.illness), -finding.amount))


def _of_grid(grid: GridSigns, first: bool) -> Finding | None:
    """Return the first illness that applies; `first`: the grid is one of the network's first layer."""
    rules = (*_OF_GRIDS, coarse_first_layer) if first else _OF_GRIDS
    return next((finding for rule in rules if (finding := rule(grid)) is not None), None)


# Illnesses of a grid, causes before their effects


def signed_data(grid: GridSigns) -> Finding | None:
    """Return a finding if an unsigned grid receives negative values, which it maps to 0."""
    if grid.lost <= LOST:
        return None
    return Finding(
        *("signed data", grid.layer, grid.role, FATAL, grid.lost),
        f"The {_of(grid)} has no levels below zero, but {_percent(grid.lost)} of the signal is negative and is lost.",
        "Set signed=True for this layer (an entry of special_layers), or leave signed out and calibrate on images of "
        "the training set.",
    )


def sign_changed(grid: GridSigns) -> Finding | None:
    """Return a finding if training drove a learned scale below zero."""
    if not grid.turned:
        return None
    which = "The scale" if grid.turned == 1 else f"{_percent(grid.turned)} of the scales"
    return Finding(
        *("sign changed", grid.layer, grid.role, FATAL, grid.turned),
        f"{which} of the {_of(grid)} crossed zero in training; the magnitude is used, so the gradient keeps turning.",
        "Lower the learning rate of the quantizers (optimizer.paramwise_cfg with quantizers), and start from "
        "calibration=dict(method='mse').",
    )


def scale_collapsed(grid: GridSigns) -> Finding | None:
    """Return a finding if the grid ends far below the largest values."""
    if grid.reach < COLLAPSED:
        return None
    return Finding(
        *("scale collapsed", grid.layer, grid.role, FATAL, grid.reach),
        f"The scale of the {_of(grid)} collapsed to {grid.scale:.2g}: values reach {grid.reach:.0f} times beyond the "
        f"grid, and {_percent(grid.clipped)} of them are clipped.",
        "Calibrate again (method='mse'), and lower the learning rate of the quantizers.",
    )


def scale_ran_away(grid: GridSigns) -> Finding | None:
    """Return a finding if the grid ends far above the largest values."""
    if grid.reach == 0 or grid.reach > RUNAWAY:
        return None
    return Finding(
        *("scale ran away", grid.layer, grid.role, FATAL, 1 / grid.reach),
        f"The scale of the {_of(grid)} ran away to {grid.scale:.2g}: the grid reaches {1 / grid.reach:.0f} times "
        f"beyond the largest value, so only {grid.levels_used:.0f} of {grid.levels} levels are used.",
        "Calibrate again (method='mse'), and lower the learning rate of the quantizers.",
    )


def mostly_clipped(grid: GridSigns) -> Finding | None:
    """Return a finding if most values lie beyond the outermost levels."""
    if grid.clipped <= CLIPPED:
        return None
    return Finding(
        *("mostly clipped", grid.layer, grid.role, COSTLY, grid.clipped),
        f"{_percent(grid.clipped)} of the nonzero values at the {_of(grid)} are clipped: its range is too narrow.",
        "Calibrate with method='percentile' or 'minmax', on images like those in use; in training, raise the learning "
        "rate of the quantizers.",
    )


def idle_levels(grid: GridSigns) -> Finding | None:
    """Return a finding if half of the levels, so one bit, lie outside of those in use."""
    if grid.span > grid.levels / 2 or grid.levels <= 2:
        return None
    said = f"The {_of(grid)} uses {grid.span:.0f} of the {grid.levels} levels that {_bits(grid)} allow"
    if grid.one_sided and grid.role == "input":
        said += ", because its values are hardly ever negative."
        remedy = "Set signed=False for this layer if they never are, or use a method with an offset (LSQPlus)."
    else:
        said += ": its range is too wide."
        remedy = "Calibrate with method='mse' or 'percentile': a few outliers may define the range."
    return Finding("idle levels", grid.layer, grid.role, NOTABLE, 1 - grid.span / grid.levels, said, remedy)


_OF_GRIDS: tuple[Callable[[GridSigns], Finding | None], ...] = (
    *(signed_data, sign_changed, scale_collapsed, scale_ran_away, mostly_clipped, idle_levels),
)

# Illnesses of a network in training


def drifted_norm(norm: NormSigns) -> Finding | None:
    """Return a finding if BatchNorm's running statistics are not those of the quantized network."""
    if norm.shift <= SHIFT and norm.spread <= SPREAD:
        return None
    amount = max(norm.shift / SHIFT, norm.spread / SPREAD)
    return Finding(
        *("drifted statistics", norm.name, "statistics", COSTLY, amount),
        f"The running statistics of `{norm.name}` do not fit the weights: on these images the means are off by "
        f"{norm.shift:.2g} deviations, and the deviations by a factor of {norm.spread:.2g}.",
        "Add PreciseBNHook to custom_hooks, which estimates them again, and freeze weights that oscillate "
        "(FreezeOscillationsHook).",
    )


def oscillating(grid: GridSigns, watched: float | None) -> Finding | None:
    """Return a finding if many weights jump between two integers, as watched in training, or else by their places."""
    share = grid.at_borders if watched is None else watched
    if share is None or grid.num_bits > MOST_BITS or share <= (AT_BORDERS if watched is None else OSCILLATING):
        return None
    if watched is None:
        said = f"{_percent(share)} of the weights of `{grid.layer}` lie at a border between two integers"
        said += ", where weights oscillate; spread evenly, it would be 10 %."
    else:
        said = f"{_percent(share)} of the weights of `{grid.layer}` oscillate between two integers."
    remedy = "Add FreezeOscillationsHook or DampenOscillationsHook to custom_hooks, or average the weights (ema)."
    return Finding("oscillating weights", grid.layer, "weight", COSTLY, share, said, remedy)


def coarse_first_layer(grid: GridSigns) -> Finding | None:
    """Return a finding if the first layer rounds its weight or the images too coarsely for all layers after it."""
    if grid.sqnr_db is None or grid.sqnr_db >= FIRST_SQNR:
        return None
    return Finding(
        *("coarse first layer", grid.layer, grid.role, NOTABLE, FIRST_SQNR - grid.sqnr_db),
        f"The {_of(grid)}, the first layer, has an SQNR of only {grid.sqnr_db:.1f} dB at {_bits(grid)}; no later layer "
        "can restore what it loses.",
        "Give the first layer 8 bits (special_layers); it is small.",
    )


NAMES = (
    *("signed data", "sign changed", "scale collapsed", "scale ran away"),
    *("mostly clipped", "oscillating weights", "drifted statistics"),
    *("idle levels", "coarse first layer"),
)
"""Names of all illnesses."""
SEVERITIES = {FATAL: "broken", COSTLY: "costly", NOTABLE: "note"}
"""Severities in words."""


def _of(grid: GridSigns) -> str:
    return f"{grid.role} quantizer of `{grid.layer}`"


def _bits(grid: GridSigns) -> str:
    return f"{grid.num_bits} bit{'s' if grid.num_bits != 1 else ''}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"

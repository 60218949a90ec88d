"""Summary of the layers that multiply integers in training, added to a plan's table."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lbitcls.quant.integer_layers import why_float
from lbitcls.quant.layers import QuantLayer, kind_of
from lbitcls.quant.methods import build_quant_layer
from lbitcls.quant.plan import Plan, PlanRow

_SHOWN = 4


def integer_summary(plan: Plan, model: nn.Module, macs: Mapping[str, int] | None = None) -> list[str]:
    """Return the layers that a training step with integer kernels multiplies in integers and in floats, as lines.

    Reasons that depend on a quantizer's scale are not known yet.

    Args:
        plan: Plan for `model`.
        model: Model before the transformation.
        macs: Multiply-accumulates by full name, for the shares (`count_macs`).
    """
    groups: dict[str, list[str]] = {}
    for row in plan:
        if kind_of(model.get_submodule(row.name)) is not None:
            groups.setdefault(_why_float(row, model) or "", []).append(row.name)
    total = sum(len(names) for names in groups.values())
    exact = groups.pop("", [])
    lines = [f"multiplies integers in training: {len(exact)} of {total} layers{_share(exact, macs)}"]
    return lines + [
        f"multiplies floats in training: {len(names)} of {total} layers{_share(names, macs)}: {reason}"
        + (f"; {', '.join(names)}" if len(names) <= _SHOWN else "")
        for reason, names in groups.items()
    ]


def _why_float(row: PlanRow, model: nn.Module) -> str | None:
    if not row.quantized:
        return "not quantized"
    layer = build_quant_layer(row.cfg or {}, model.get_submodule(row.name))  # shares its tensors with the float layer
    if not isinstance(layer, QuantLayer):
        return f"{type(layer).__name__} computes its product itself"
    return why_float(layer)


def _share(names: list[str], macs: Mapping[str, int] | None) -> str:
    """Return the share of the multiplications of some layers, in parentheses; empty if unknown."""
    total = sum(macs.values()) if macs else 0
    if macs is None or not total:
        return ""
    return f" ({100 * sum(macs.get(name, 0) for name in names) / total:.1f} % of the multiplications)"

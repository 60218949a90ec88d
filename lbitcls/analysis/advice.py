"""Advice on mixed precision: the layers in which more bits gain most for their size, and the config to paste.

    gain         of the whole quantized model when this layer alone is in float: top-1 if labels are known, and the
                 part of the divergence that goes away
    cost         KiB that the layer's weight takes more at 8 bits

The gain is measured in float, which 8 bits come close to, and before any further training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lbitcls.analysis.findings import Analysis

BITS = 8
"""Bits of weight and inputs that the advice gives a layer."""
MOST = 3
"""Largest number of layers in the config to paste."""


@dataclass(frozen=True)
class Advice:
    """Layer that may get more bits.

    Attributes:
        name: Full name of the layer.
        kind: Float type.
        kib: KiB that its weight takes more at 8 bits.
        top1: Top-1 gained, in percentage points; None without labels.
        kl: Divergence removed, in nats.
        per_kib: Gain per KiB: top-1 in percentage points if labels are known, else the divergence in nats.
    """

    name: str
    kind: str
    kib: float
    top1: float | None
    kl: float
    per_kib: float


def advise(analysis: Analysis) -> list[Advice]:
    """Return the layers with weights below 8 bits in which float gains something, most gain per KiB first.

    Equal gains of top-1, which few images do not tell apart, are ordered by the divergence removed per KiB.
    """
    whole, found = analysis.everything, []
    for layer in analysis.layers:
        if whole is None or layer.scan is None or layer.num_bit_w >= BITS:
            continue
        without = layer.scan.without
        kib = math.prod(layer.shape) * (BITS - layer.num_bit_w) / 8 / 1024
        top1 = None if without.top1 is None or whole.top1 is None else 100 * (without.top1 - whole.top1)
        kl = whole.kl - without.kl
        gain = kl if top1 is None else top1
        if gain >= 0 and kl > 0:
            found.append(Advice(layer.name, layer.kind, kib, top1, kl, gain / kib))
    return sorted(found, key=lambda advice: (-advice.per_kib, -advice.kl / advice.kib))


def special_layers(advices: Sequence[Advice], transformer: Mapping[str, Any]) -> str:
    """Return `special_layers` for a config, with the first layers of `advices` at 8 bits; empty without any.

    Args:
        advices: Result of `advise`.
        transformer: The config's `quant_transformer`, whose own special layers stay.
    """
    given = transformer.get("special_layers") or {}
    entries = dict(zip(given.get("layers_name", ()), given.get("convert_type", ()), strict=True))
    chosen = []
    for advice in advices[:MOST]:
        entry = entries.get(advice.name) or (transformer.get("quan_policy") or {}).get(advice.kind)
        if entry is not None:
            entries[advice.name] = _with_more_bits(entry)
            chosen.append(advice)
    if not chosen:
        return ""
    lines = [
        *("special_layers=dict(", "    layers_name=["),
        *(f"        {name!r}," for name in entries),
        *("    ],", "    convert_type=["),
        *(f"        {_entry(entry)}," for entry in entries.values()),
        *("    ],", "),"),
    ]
    return "\n".join(lines)


def _with_more_bits(entry: Mapping[str, Any]) -> dict[str, Any]:
    from lbitcls.quant.aliases import KEYS

    named = {KEYS.get(key, key): value for key, value in entry.items()}
    return {**named, "num_bit_w": BITS, "num_bit_a": BITS}


def _entry(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "None"
    plain = all(key.isidentifier() for key in entry)
    return f"dict({', '.join(f'{k}={v!r}' for k, v in entry.items())})" if plain else repr(dict(entry))

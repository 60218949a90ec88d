"""Description of the grid that a quantizer's saved values belong to, for state dicts and messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

GRID = "grid"
"""Entry of a quantizer's state dict that describes the grid of the other entries: JSON text, as bytes."""


def read_facts(text: Tensor) -> dict[str, Any]:
    """Return the facts in an entry `GRID`; empty if it is damaged."""
    try:
        facts = json.loads(bytes(text.flatten().tolist()))
    except (ValueError, TypeError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def describe(facts: Mapping[str, Any]) -> str:
    """Return a grid in words."""
    if not facts:
        return "an unknown grid"
    channels, integers = facts.get("channels"), facts.get("integers")
    span = f", integers {integers[0]} to {integers[-1]}" if isinstance(integers, list) and integers else ""
    per = "" if channels is None else f", {channels} channels"
    folded = ", BatchNorm folded" if facts.get("folded") else ""
    norm = f", weight_norm={facts['weight_norm']}" if "weight_norm" in facts else ""
    unbiased = ", unbiased deviation" if facts.get("unbiased") else ""
    return f"{facts.get('method')}, {facts.get('bits')} bits{span}{per}{folded}{norm}{unbiased}"


def sign_name(signed: bool) -> str:
    """Return `signed` in words."""
    return "signed" if signed else "unsigned"

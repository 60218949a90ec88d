"""The grid that a quantizer's saved values belong to: read from a state dict, and told in messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

GRID = "grid"
"""The entry of a quantizer's state dict that says which grid the others belong to: JSON text, as bytes."""


def read_facts(text: Tensor) -> dict[str, Any]:
    """The facts in an entry `GRID`; none where it is damaged."""
    try:
        facts = json.loads(bytes(text.flatten().tolist()))
    except (ValueError, TypeError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def describe(facts: Mapping[str, Any]) -> str:
    """A grid in words."""
    if not facts:
        return "a grid that is not told"
    channels, integers = facts.get("channels"), facts.get("integers")
    span = f", integers {integers[0]} to {integers[-1]}" if isinstance(integers, list) and integers else ""
    per = "" if channels is None else f", {channels} channels"
    folded = ", BatchNorm folded" if facts.get("folded") else ""
    return f"{facts.get('method')}, {facts.get('bits')} bits{span}{per}{folded}"


def sign_name(signed: bool) -> str:
    """`signed` in words."""
    return "signed" if signed else "unsigned"

"""Older names of entries and keys, all in one place, so that configs of earlier frameworks work unchanged."""

from __future__ import annotations

import functools
import logging
from typing import Any

from lbitcls.utils.errors import ConfigError

KEYS = {"nbits_w": "num_bit_w", "nbits_a": "num_bit_a", "bit_w": "num_bit_w", "bit_a": "num_bit_a"}
"""Older names of keys."""

WITHOUT_MEANING = (
    "debug",
    "init_method_w",
    "init_method_a",
    "add_offset_w",
    "add_offset_a",
    "momentum",
    "customer_backward_w",
    "customer_backward_a",
    "wquant_error_loss",
)
"""Keys of older LSQ+ configs that have no effect here; accepted with a warning."""

_EIGHT_BIT: dict[str, Any] = {"num_bit_w": 8, "num_bit_a": 8, "quant_activation": False}
ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "LSQConv2d": ("LSQConv", {}),
    "LSQPlusConv2d": ("LSQPlusConv", {}),
    "LSQDPlusConv2d": ("LSQPlusConv", {}),
    "DRFConv": ("DoReFaConv", {}),
    "DRFLinear": ("DoReFaLinear", {}),
    "APOTQuantConv2d": ("APoTConv", {}),
    "APOTQuantLinear": ("APoTLinear", {}),
    "EightBitQuantConv": ("TorchQATConv", _EIGHT_BIT),
    "EightBitQuantLinear": ("TorchQATLinear", _EIGHT_BIT),
}
"""Older names of entries → current name, and the old entry's default options."""


def current_entry(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the current name of an entry, and its options with the old defaults."""
    name, defaults = ENTRIES.get(name, (name, {}))
    options = {**defaults, **options}
    if name.startswith("APoT") and not options.pop("power", True):
        name = name.replace("APoT", "UQ")  # the original APoT code's switch for its baseline
    return name, options


def current_options(owner: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` under their current names.

    `auto_signed=True` is the default behavior; False means unsigned inputs.

    Raises:
        ConfigError: A key is set twice, under two names.
    """
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = KEYS.get(key, key)
        if name in found:
            raise ConfigError(f"{owner} sets '{name}' twice (also as '{key}'); remove one.")
        if name == "auto_signed":
            found |= {} if value else {"signed": False}
        elif name not in WITHOUT_MEANING:
            found[name] = value
    ignored = tuple(key for key in options if key in WITHOUT_MEANING)
    if ignored:
        _warn(owner, ignored)
    return found


@functools.lru_cache
def _warn(owner: str, keys: tuple[str, ...]) -> None:
    logging.getLogger("lbitcls").warning("%s: Ignoring %s, which have no effect here.", owner, ", ".join(keys))

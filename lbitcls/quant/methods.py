"""Methods by name, and the options of quantized layers in configs.

A method is a pair of quantizers, one for weights and one for inputs. `register_method("LSQ", weight=LSQ, input=LSQ)`
registers the entries `LSQConv` and `LSQLinear` for configs, as `dict(type='LSQConv', num_bit_w=4, num_bit_a=4)`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from lbitcls.quant.aliases import current_entry, current_options
from lbitcls.quant.layers import ENTRY_SUFFIXES, HOOKS, LAYER_KINDS, QuantLayer, kind_of, num_channels
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import FLOAT_BITS, check_num_bits
from lbitcls.registry import QUANT_LAYERS
from lbitcls.utils.arguments import check_names, check_values
from lbitcls.utils.errors import ConfigError, reject_unknown_keys

LAYER_KEYS = ("num_bit_w", "num_bit_a", "bSetQ", "quant_activation", "per_channel")
_OF_ONE_ROLE = {
    "signed": "input",
    "narrow_range": "weight",
    "reduce_range": "input",
    "unbiased": "weight",
    "step_from_max": "weight",
    "weight_norm": "weight",
}
_GIVEN_BY_LAYER = ("num_bits", "role", "num_channels", "channel_axis")


@dataclass(frozen=True)
class Method:
    """Named pair of quantizers (`input` None: weights only)."""

    name: str
    weight: type[Quantizer]
    input: type[Quantizer] | None

    def options(self) -> dict[str, tuple[str, ...]]:
        """Return the quantizers' options, each with the roles ("weight", "input") that accept it."""
        taken: dict[str, tuple[str, ...]] = {}
        for role, quantizer in (("weight", self.weight), ("input", self.input)):
            for name in _keywords(quantizer) if quantizer is not None else ():
                if _OF_ONE_ROLE.get(name, role) == role:
                    taken[name] = (*taken.get(name, ()), role)
        return taken


METHODS: dict[str, Method] = {}
"""Methods whose module is imported, by name."""


@dataclass(frozen=True)
class LayerEntry:
    """Entry that `type='LSQConv'` names: a method for a kind of layer."""

    name: str
    method: Method
    kind: str

    def __call__(self, layer: nn.Module, **options: Any) -> nn.Module:
        """Return the quantized form of the float `layer`, with a config's options under their current names.

        Raises:
            ConfigError: The layer is of another kind, an option is unknown, or the method lacks these bits.
        """
        if kind_of(layer) != self.kind:
            raise ConfigError(f"{self.name} replaces a {self.kind}; got a {type(layer).__name__}.")
        settings = self.settings(options)
        if not settings.weight_bits and not settings.input_bits:
            return layer
        kind = LAYER_KINDS[self.kind]
        return kind.from_float(
            layer,
            self._weight_quantizer(layer, kind, settings),
            self._input_quantizer(settings),
            self.method.name,
        )

    def settings(self, options: dict[str, Any]) -> LayerSettings:
        """Parse a config's options: bits of weight and input (None: float), and the quantizers' options."""
        options = dict(options)
        known = self.method.options()
        reject_unknown_keys(self.name, options, (*LAYER_KEYS, *known))
        self._check_values(options)
        quantize = options.pop("bSetQ", True)
        inputs = options.pop("quant_activation", self.method.input is not None) and quantize
        per_channel = options.pop("per_channel", False)
        weight_bits = self._bits(options, "num_bit_w", quantize, self.method.weight.lowest_bits)
        input_bits = self._bits(options, "num_bit_a", inputs, 2)
        if self.kind == "Linear" and options.get("weight_norm") and not self.method.weight.norm_of_method:
            raise ConfigError(
                f"{self.name}: weight_norm divides a layer's output by the standard deviation of its weights, which "
                "only a BatchNorm after it undoes; a Linear has none. Leave it out here, and set it for Conv layers."
            )
        by_role = {role: {k: v for k, v in options.items() if role in known.get(k, ())} for role in ("weight", "input")}
        return LayerSettings(weight_bits, input_bits, per_channel, by_role["weight"], by_role["input"])

    def _check_values(self, options: dict[str, Any]) -> None:
        for key in ("bSetQ", "quant_activation", "per_channel"):
            if options.get(key, False) not in (True, False):
                raise ConfigError(f"{self.name}: {key} must be True or False; got {options[key]!r}.")
        for quantizer in (self.method.weight, self.method.input):
            for cls in quantizer.__mro__ if quantizer is not None else ():
                if cls is not object and cls is not nn.Module and "__init__" in vars(cls):
                    check_values(self.name, cls, {k: v for k, v in options.items() if k not in LAYER_KEYS})

    def _bits(self, options: dict[str, Any], key: str, wanted: bool, lowest: int) -> int | None:
        bits = options.pop(key, None)
        if not wanted or bits == FLOAT_BITS:
            return None
        if bits is None:
            raise ConfigError(f"{self.name} needs '{key}' ({lowest} to 8; 32: float).")
        return check_num_bits(bits, f"{self.name} ({key})", lowest)

    def _weight_quantizer(self, layer: nn.Module, kind: type[QuantLayer], settings: LayerSettings) -> Quantizer | None:
        if settings.weight_bits is None:
            return None
        channels = num_channels(layer, kind) if settings.per_channel else None
        return self.method.weight(
            settings.weight_bits,
            role="weight",
            num_channels=channels,
            channel_axis=kind.weight_channel_axis,
            **settings.weight_options,
        )

    def _input_quantizer(self, settings: LayerSettings) -> Quantizer | None:
        if settings.input_bits is None or self.method.input is None:
            return None
        return self.method.input(settings.input_bits, role="input", **settings.input_options)


@dataclass(frozen=True)
class LayerSettings:
    """Parsed config entry: bits (None: float), granularity, and each quantizer's options."""

    weight_bits: int | None
    input_bits: int | None
    per_channel: bool
    weight_options: dict[str, Any]
    input_options: dict[str, Any]


def register_method(name: str, weight: type[Quantizer], input: type[Quantizer] | None, force: bool = False) -> None:
    """Register a method for configs, as `<name>Conv`, `<name>Linear`, ….

    Args:
        name: Name of the method, as configs write it before the kind of layer.
        weight: Quantizer class for weights.
        input: Quantizer class for inputs; None: the method quantizes weights only.
        force: Replace a method of the same name, for example when a notebook cell runs again.

    Raises:
        ConfigError: The name is taken, and `force` is False.
    """
    method = Method(name, weight, input)
    for suffix in ENTRY_SUFFIXES.values():
        QUANT_LAYERS.claim(f"{name}{suffix}", weight, force)
    for kind, suffix in ENTRY_SUFFIXES.items():
        entry = f"{name}{suffix}"
        QUANT_LAYERS.register_module(name=entry, module=LayerEntry(entry, method, kind), force=force)
    METHODS[name] = method


def find_entry(cfg: Any) -> tuple[Any, dict[str, Any]]:
    """Return the registered entry that `dict(type=NAME, …)` names, and its options."""
    if not isinstance(cfg, dict) or not isinstance(cfg.get("type"), str):
        raise ConfigError(f"a quantized layer must be a dict(type='LSQConv', num_bit_w=4, num_bit_a=4); got {cfg!r}.")
    name, options = current_entry(cfg["type"], {key: value for key, value in cfg.items() if key != "type"})
    entry = QUANT_LAYERS.find(name)
    if isinstance(entry, LayerEntry):
        options = current_options(name, options)
    return entry, options


def build_quant_layer(cfg: dict[str, Any], layer: nn.Module) -> nn.Module:
    """Build the quantized layer that replaces a float layer.

    Args:
        cfg: Entry `dict(type=ENTRY, num_bit_w=…, num_bit_a=…, …)`.
        layer: Float layer; its parameters are kept (the same tensors).

    Returns:
        The quantized layer; `layer` itself if the entry keeps it float (`bSetQ=False`, or 32 bits for both).

    Example:
        >>> layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(8, 8, 3))
        >>> layer.weight_quantizer(layer.weight).shape
        torch.Size([8, 8, 3, 3])
    """
    entry, options = find_entry(cfg)
    if isinstance(entry, LayerEntry):
        return entry(layer, **options)
    return build_own_layer(entry, layer, options)


def build_own_layer(cls: type[nn.Module], layer: nn.Module, options: dict[str, Any]) -> nn.Module:
    """Build a user's layer class with the float layer's arguments and parameters."""
    arguments = {**constructor_arguments(layer), **options}
    check_names(cls, arguments)
    check_values(cls.__name__, cls, options)
    own = cls(**arguments)
    missing = {"weight", "bias"} & set(own.load_state_dict(layer.state_dict(), strict=False).missing_keys)
    if missing:
        raise ConfigError(
            f"{cls.__name__} needs the parameters of the layer that it replaces, but a hook or a parametrization "
            f"computes {' and '.join(sorted(missing))} of this {type(layer).__name__}: replace the layer first, then "
            "add the hook or parametrization to the new one."
        )
    for hooks in HOOKS:
        getattr(own, hooks).update(getattr(layer, hooks))
    return own.to(next(layer.parameters()).device).train(layer.training)


def constructor_arguments(layer: nn.Module) -> dict[str, Any]:
    """Return the arguments that build a float Conv or Linear like `layer`."""
    names = inspect.signature(type(layer).__init__).parameters
    found = {n: getattr(layer, n) for n in names if n not in ("self", "device", "dtype", "bias") and hasattr(layer, n)}
    return {**found, "bias": layer.bias is not None}


def _keywords(quantizer: type[Quantizer]) -> set[str]:
    """Return the keyword arguments of a quantizer and its base classes that a config may set."""
    names: set[str] = set()
    for cls in quantizer.__mro__:
        if cls is nn.Module:
            break
        if "__init__" in cls.__dict__:
            parameters = inspect.signature(cls.__dict__["__init__"]).parameters.values()
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names - {"self", *_GIVEN_BY_LAYER, *quantizer.fixed_options}

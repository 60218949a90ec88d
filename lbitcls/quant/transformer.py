"""Model transformer: replaces float layers of a model with quantized ones, as a config specifies.

It plans first, and changes the model only if the whole plan is valid. It swaps modules by name and never traces, so
models may use any control flow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from lbitcls.quant.bypass import leave_fast_path
from lbitcls.quant.calibration import named_quantizers
from lbitcls.quant.integer_report import integer_summary
from lbitcls.quant.kernels.selection import integer_now
from lbitcls.quant.layers import QuantConv2d, QuantLayer, kind_of, quantized_kind
from lbitcls.quant.methods import LayerEntry, build_quant_layer, find_entry
from lbitcls.quant.plan import Plan, PlanRow, own_parameters
from lbitcls.quant.quantized_sums import find_additions, quantize_additions
from lbitcls.registry import TRANSFORMERS
from lbitcls.settings.quant import SpecialLayers, TransformerConfig
from lbitcls.utils.errors import ConfigError, suggest
from lbitcls.utils.logging import DETAIL

Rules = dict[str, tuple[str, Any]]  # full layer name -> (the rule's location in the config, the entry)

_SWIN = "torchvision.models.swin_transformer.ShiftedWindowAttention"
READ_INSIDE = {_SWIN: ("qkv", "proj"), f"{_SWIN}V2": ("qkv", "proj")}
"""Modules that read the weights of their layers without calling the layers, by full type."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@TRANSFORMERS.register_module(name=["ModelTransformer", "mTransformerV2", "QuanTransformer"])
class ModelTransformer:
    """Transformer that applies the first rule matching a layer: excluded, special (full name), policy (exact type).

    Args:
        quan_policy: Entry for each kind of layer: `dict(Conv2d=dict(type='LSQConv', num_bit_w=4, num_bit_a=4), …)`.
        special_layers: Full names of layers, and an entry for each (None: the layer stays float):
            `dict(layers_name=[…], convert_type=[…])`.
        exclude_layers: Full names of layers, or of modules including their contents, that stay float.
        fold_bn: Quantize the weight of a Conv2d with the BatchNorm2d folded in that follows it, in the order of
            definition within one module, and has its output channels (see `QuantConv2d`).
        residual_bits: 8: fake quantize what the blocks add (`lbitcls.quant.quantized_sums`); None: it stays float.

    Example:
        >>> transformer = ModelTransformer(dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4)))
        >>> print(transformer.plan(model).table())
        layer ...
        >>> model = transformer(model)
    """

    def __init__(
        self,
        quan_policy: Mapping[str, Any],
        special_layers: Mapping[str, Any] | None = None,
        exclude_layers: str | Sequence[str] = TransformerConfig.exclude_layers,
        fold_bn: bool = TransformerConfig.fold_bn,
        residual_bits: Literal[8] | None = TransformerConfig.residual_bits,
    ) -> None:
        given: Any = {"quan_policy": quan_policy, "special_layers": special_layers, "fold_bn": fold_bn}
        given["residual_bits"] = residual_bits
        settings = TransformerConfig(**given, exclude_layers=exclude_layers)  # type: ignore[arg-type]  # also a list
        special = settings.special_layers or SpecialLayers()
        for kind, entry in quan_policy.items():
            quantized_kind(kind)
            _check_entry(f"quan_policy.{kind}", entry, kind)
        self.quan_policy = dict(quan_policy)
        self.special_names, self.special_entries = special.layers_name, special.convert_type
        self.fold_bn = settings.fold_bn
        self.residual_bits = settings.residual_bits
        self.exclude_layers = [exclude_layers] if isinstance(exclude_layers, str) else list(exclude_layers)

    def __call__(self, model: nn.Module, logger: logging.Logger | None = None) -> nn.Module:
        """Plan, log the plan, replace the layers of `model` in place, and return `model`."""
        plan = self.plan(model)
        new_layers = self._build(model, plan)
        lines = [plan.table(), *(integer_summary(plan, model) if integer_now() else ())]
        (logger or logging.getLogger("lbitcls")).info("Quantization plan\n%s", "\n".join(lines), extra=DETAIL)
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if id(module) in new_layers:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, new_layers[id(module)])
        quantize_additions(model, plan.additions)
        for name, quantizer in named_quantizers(model):
            quantizer.place = name
        if bare := without_norm(model):
            text = (
                "weight_norm: No normalization layer is defined after %s. Its output is multiplied by 1 / std of its "
                "weights; if none follows in forward either, set weight_norm=False for it in special_layers."
            )
            (logger or logging.getLogger("lbitcls")).warning(text, ", ".join(bare))
        off = leave_fast_path(model)
        if off:
            text = "Turned off PyTorch's fused kernel of transformer layers, which bypasses quantized layers, in %s."
            (logger or logging.getLogger("lbitcls")).info(text, ", ".join(off))
        if self.fold_bn:
            pairs = fold_norms(model)
            text = "\n".join(f"  {norm} into {conv}" for conv, norm in pairs)
            (logger or logging.getLogger("lbitcls")).info(
                "BatchNorm folded before quantization\n%s", text, extra=DETAIL
            )
        return model

    def plan(self, model: nn.Module) -> Plan:
        """Return the plan of calling the transformer, without changing the model.

        Raises:
            ConfigError: A name matches no layer, a layer is named twice, an entry does not fit its layer, or nothing
                would be quantized.
        """
        modules = dict(model.named_modules())
        special = self._special_rules(model, modules)
        excluded = self._excluded(model, modules)
        both = sorted(set(special) & set(excluded))
        if both:
            raise ConfigError(f"'{both[0]}' is in both special_layers and exclude_layers; remove it from one.")
        rows = [self._row(n, modules, special, excluded) for n, m in modules.items() if own_parameters(m)]
        if not any(row.quantized or row.cfg is not None for row in rows):
            raise ConfigError(
                f"quan_policy ({', '.join(self.quan_policy) or 'empty'}) and special_layers match no layer of "
                f"{type(model).__name__}; is it already quantized?"
            )
        additions = () if self.residual_bits is None else find_additions(model, excluded)
        return Plan(tuple(rows), additions)

    def _build(self, model: nn.Module, plan: Plan) -> dict[int, nn.Module]:
        new_layers = {}
        for row in plan.quantized:
            if not row.name:
                raise ConfigError(f"the model itself is a {row.kind}: wrap it in a module so that it can be replaced.")
            layer = model.get_submodule(row.name)
            new_layers[id(layer)] = build_quant_layer(row.cfg or {}, layer)
        return new_layers

    def _special_rules(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> Rules:
        rules: Rules = {}
        for i, (name, entry) in enumerate(zip(self.special_names, self.special_entries)):
            place = f"special_layers.layers_name[{i}]"
            full = resolve_name(name, model, modules, place)
            if (owner := _reader(full, modules)) is not None:
                raise ConfigError(
                    f"{place} = '{name}' is not called: {owner} reads its weight itself, so it stays float; remove it."
                )
            if kind_of(modules[full]) is None:
                raise ConfigError(f"{place} = '{name}' is a {type(modules[full]).__name__}, which cannot be quantized.")
            if full in rules:
                raise ConfigError(f"{place} = '{name}' names '{full}' a second time.")
            if entry is not None:
                _check_entry(f"special_layers.convert_type[{i}]", entry, str(kind_of(modules[full])))
            rules[full] = (place, entry)
        return rules

    def _excluded(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, str]:
        excluded = {}
        for i, name in enumerate(self.exclude_layers):
            place = f"exclude_layers[{i}]"
            full = resolve_name(name, model, modules, place)
            excluded.update({n: place for n in modules if n == full or n.startswith(f"{full}.")})
        return excluded

    def _row(self, name: str, modules: Mapping[str, nn.Module], special: Rules, excluded: Mapping[str, str]) -> PlanRow:
        module = modules[name]
        kind, reader = kind_of(module), _reader(name, modules)
        rule, cfg = "", None
        if kind is None:
            rule = _why_float(module)
        elif reader is not None:
            rule = f"{reader} reads its weight itself"
        elif name in excluded:
            rule = excluded[name]
        elif name in special:
            rule, cfg = special[name]
        elif kind in self.quan_policy:
            rule, cfg = f"quan_policy.{kind}", self.quan_policy[kind]
        else:
            rule = f"quan_policy has no {kind}"
        entry, bits_w, bits_a = _settings(cfg)
        if cfg is not None and entry is None:
            rule += " leaves it float"
        weight: nn.Parameter | None = getattr(module, "weight", None)
        shape = () if weight is None else tuple(weight.shape)
        return PlanRow(name, type(module).__name__, shape, entry, bits_w, bits_a, rule, own_parameters(module), cfg)


def fold_norms(model: nn.Module) -> list[tuple[str, str]]:
    """Fold each BatchNorm2d into the quantized Conv2d defined just before it, and return the pairs of names.

    Call it again after norms are replaced (for example by synchronized ones).
    """
    pairs = []
    for parent, module in model.named_modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            fits = (
                isinstance(conv, QuantConv2d) and isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)) and norm.affine
            )
            if fits and conv.weight_quantizer is not None and conv.out_channels == norm.num_features:
                conv.fold(norm)
                pairs.append((f"{parent}.{conv_name}", f"{parent}.{norm_name}"))
    return pairs


def without_norm(model: nn.Module) -> list[str]:
    """Return the layers with the option `weight_norm` that no normalization layer follows in their module.

    As in `fold_norms`, the order is that of definition.
    """
    found = []
    for parent, module in model.named_modules():
        children = [*module.named_children(), ("", None)]
        for (name, layer), (_, following) in pairwise(children):
            quantizer = layer.weight_quantizer if isinstance(layer, QuantLayer) else None
            if quantizer is not None and quantizer.adds_norm and not isinstance(following, _NORMS):
                found.append(f"{parent}.{name}".lstrip("."))
    return found


def build_mtransformer(cfg: dict[str, Any]) -> ModelTransformer:
    """Build the model transformer of a config's section `quant_transformer`.

    Example:
        >>> transformer = build_mtransformer(cfg.quant_transformer)
        >>> model = transformer(model, logger=logger)
    """
    return TRANSFORMERS.build(dict(cfg))


def resolve_name(name: str, model: nn.Module, modules: Mapping[str, nn.Module], place: str) -> str:
    """Return the full name that `name` stands for: itself, or its translation by a module's `layer_aliases`."""
    if not isinstance(name, str):
        raise ConfigError(f"{place} must be the full name of a layer; got {name!r}.")
    if name in modules:
        return name
    for prefix, module in modules.items():
        aliases = getattr(module, "layer_aliases", {})
        for old, new in aliases.items():
            if name == f"{prefix}.{old}" and f"{prefix}.{new}" in modules:
                return f"{prefix}.{new}"
    raise ConfigError(f"{place} = '{name}' names no layer of {type(model).__name__}{suggest(name, _names(modules))}")


def _names(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if name]


def _check_entry(place: str, cfg: Any, kind: str) -> None:
    """Raise `ConfigError` with the config location unless `cfg` is an entry for this kind of layer."""
    try:
        entry, options = find_entry(cfg)
        if isinstance(entry, LayerEntry):
            if entry.kind != kind:
                raise ConfigError(f"{entry.name} replaces a {entry.kind}, not a {kind}.")
            entry.settings(options)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _settings(cfg: Any) -> tuple[str | None, int | None, int | None]:
    """Return the name and bits of an entry; no name if the entry keeps the layer float."""
    if cfg is None:
        return None, None, None
    entry, options = find_entry(cfg)
    if not isinstance(entry, LayerEntry):
        return cfg["type"], options.get("num_bit_w"), options.get("num_bit_a")
    settings = entry.settings(options)
    name = entry.name if settings.weight_bits or settings.input_bits else None
    return name, settings.weight_bits, settings.input_bits


def _reader(name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the type of the enclosing module that reads a layer's weight (`READ_INSIDE`), or None."""
    parent, _, child = name.rpartition(".")
    for base in type(modules[parent]).__mro__ if parent in modules else ():
        if child in READ_INSIDE.get(f"{base.__module__}.{base.__qualname__}", ()):
            return type(modules[parent]).__name__
    return None


def _why_float(module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return "computes its attention projections itself"
    if any(parent.__name__ in ("Linear", "Conv1d", "Conv2d") for parent in type(module).__mro__[1:]):
        return f"layers are matched by exact type, and {type(module).__name__} is a subclass"
    return "not a kind of layer that is quantized"

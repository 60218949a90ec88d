"""The keys of `quant_transformer`: which layers become quantized, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from lbitcls.settings.fields import ITEMS, Doc, Section, Switch, Text

Entries = Annotated[tuple[Any, ...], ITEMS]


@dataclass(frozen=True, kw_only=True)
class SpecialLayers(Section):
    """Layers by their full names, and an entry for each."""

    PLACE: ClassVar[str] = "special_layers"

    layers_name: Annotated[Entries, Doc("Full names of layers.")] = ()
    convert_type: Annotated[Entries, Doc("An entry for each of the layers; None: it stays float.")] = ()

    def check(self) -> None:
        names, entries = len(self.layers_name), len(self.convert_type)
        if names != entries:
            raise ValueError(f"there are {names} layers_name and {entries} convert_type; each layer needs its entry.")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Section):
    """Rules of the model transformer: the first that names a layer counts."""

    PLACE: ClassVar[str] = "quant_transformer"

    quan_policy: Annotated[dict[str, Any], Doc("An entry for each kind of layer.")]
    special_layers: Annotated[SpecialLayers | None, Doc("Layers by their full names, and an entry for each.")] = None
    exclude_layers: Annotated[
        Text | Entries, Doc("Full names of layers, or of modules with all that is in them, that stay float.")
    ] = ()
    fold_bn: Annotated[
        Switch, Doc("Whether to quantize a Conv2d's weight as it is after its BatchNorm2d is folded into it.")
    ] = False

"""Keys of `quant_transformer`: layers to quantize, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from lbitcls.settings.base import Section
from lbitcls.settings.fields import ITEMS, Doc, Switch, Text, Unset

Names = Annotated[tuple[Text, ...], ITEMS]
Entries = Annotated[tuple[Any, ...], ITEMS]


@dataclass(frozen=True, kw_only=True)
class SpecialLayers(Section):
    """Full names of layers, and an entry for each."""

    PLACE: ClassVar[str] = "special_layers"

    layers_name: Annotated[Names, Unset(None, ()), Doc("Full names of layers.")] = ()
    convert_type: Annotated[
        Entries, Unset(None, ()), Doc("Entry for each of these layers; None: the layer stays float.")
    ] = ()

    def check(self) -> None:
        names, entries = len(self.layers_name), len(self.convert_type)
        if names != entries:
            raise ValueError(f"there are {names} layers_name and {entries} convert_type; each layer needs its entry.")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Section):
    """Rules of the model transformer; the first that matches a layer applies."""

    PLACE: ClassVar[str] = "quant_transformer"

    quan_policy: Annotated[dict[str, Any], Doc("Entry for each kind of layer, such as Conv2d or Linear.")]
    special_layers: Annotated[SpecialLayers | None, Doc("Full names of layers, and an entry for each.")] = None
    exclude_layers: Annotated[
        Text | Names, Doc("Full names of layers, or of modules including their contents, that stay float.")
    ] = ()
    fold_bn: Annotated[Switch, Doc("Quantize a Conv2d's weight with the BatchNorm2d that follows it folded in.")] = (
        False
    )
    residual_bits: Annotated[Literal[8] | None, Doc("8: train with skip connections in 8 bits, not float.")] = None

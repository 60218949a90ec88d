"""Quantization of a first config: the recipe `METHOD-NwMf`, such as `lsq-4w4f`, and its section of the config.

The first and the last layer are as in the library's configs: 8 bits, or float for DoReFa, PACT and N2UQ, as in
their papers. Weights have a step per output channel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from lbitcls.quant.methods import build_quant_layer
from lbitcls.utils.errors import ConfigError, suggest

ALIASES = {"int8": "qat-8w8f", "int4": "lsq-4w4f"}
"""Short names of recipes."""
_RECIPE = re.compile(r"([a-z\d+]+)-(\d+)w(\d+)f")
_OTHER_NAMES = {"lsq+": "lsqplus", "torchqat": "qat"}


@dataclass(frozen=True)
class Method:
    """Facts about a method that a config needs.

    Attributes:
        title: Name in texts.
        entry: Start of the entries' names in a config: `LSQ` for `LSQConv`.
        calibration: Rule that finds the initial ranges; None: the method's own.
        ends: Entry and options of the first and last layers; None: they stay float.
    """

    title: str
    entry: str
    calibration: str | None = None
    ends: tuple[str, str] | None = None


def _own_ends(title: str, entry: str, calibration: str | None = None) -> Method:
    return Method(title, entry, calibration, (entry, "num_bit_w=8, num_bit_a=8, per_channel=True"))


_WEIGHTS_ONLY = ("TorchQAT", "num_bit_w=8, quant_activation=False")
METHODS = {
    "lsq": _own_ends("LSQ", "LSQ", "mse"),
    "lsqplus": _own_ends("LSQ+", "LSQPlus"),
    "dsq": _own_ends("DSQ", "DSQ"),
    "dorefa": Method("DoReFa", "DoReFa"),
    "pact": Method("PACT", "PACT"),
    "apot": Method("APoT", "APoT", ends=_WEIGHTS_ONLY),
    "uq": Method("UQ", "UQ", ends=_WEIGHTS_ONLY),
    "ewgs": _own_ends("EWGS", "EWGS", "mse"),
    "n2uq": Method("N2UQ", "N2UQ"),
    "qat": _own_ends("PyTorch QAT", "TorchQAT"),
}
"""Methods by the name that `--quantize` accepts."""


@dataclass(frozen=True)
class Recipe:
    """Method and bits of a first config.

    Attributes:
        method: Method of the layers between the first and the last.
        weight_bits: Bits of these layers' weights.
        input_bits: Bits of these layers' inputs.
    """

    method: Method
    weight_bits: int
    input_bits: int

    @property
    def title(self) -> str:
        """Method and bits in words."""
        bits = {self.weight_bits, self.input_bits}
        said = (
            f"{self.weight_bits} bits" if len(bits) == 1 else f"{self.weight_bits} (weights) and {self.input_bits} bits"
        )
        return f"{self.method.title} at {said}"

    def epochs(self, float_epochs: int) -> int:
        """Return the number of quantized epochs: as many as in float, a third at 8 bits."""
        return max(2, float_epochs // 3) if min(self.weight_bits, self.input_bits) >= 8 else float_epochs

    def section(self, first: str, last: tuple[str, str], norms: bool) -> str:
        """Return the text of `quant_transformer`.

        Args:
            first: Full name of the model's first layer.
            last: Full name of its last layer, and the kind: `Conv` or `Linear`.
            norms: True if the model has BatchNorm.
        """
        conv, linear = (self._layer(kind) for kind in ("Conv", "Linear"))
        fold = "\n    fold_bn=True," if norms and self.method.entry == "TorchQAT" else ""
        return f"""quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(
        Conv2d={conv},
        Linear={linear},
    ),{self._ends(first, *last)}{fold}
)"""

    def _layer(self, kind: str) -> str:
        bits = f"num_bit_w={self.weight_bits}, num_bit_a={self.input_bits}"
        return f'dict(type="{self.method.entry}{kind}", {bits}, per_channel=True)'

    def _ends(self, first: str, last: str, kind: str) -> str:
        ends = self.method.ends
        if ends is None:
            return f"""
    # The first and the last layer, usually the most sensitive ones, stay float, as in the method's paper.
    exclude_layers=["{first}", "{last}"],"""
        if ends[0] == self.method.entry and self.weight_bits == self.input_bits == 8:
            return ""
        return f"""
    # The first and the last layer, usually the most sensitive ones, keep 8 bits.
    special_layers=dict(
        layers_name=["{first}", "{last}"],
        convert_type=[
            dict(type="{ends[0]}Conv", {ends[1]}),
            dict(type="{ends[0]}{kind}", {ends[1]}),
        ],
    ),"""


def find_recipe(name: str) -> Recipe:
    """Return the recipe that `name` means: `METHOD-NwMf` with N bits for weights and M for inputs, or an alias.

    Raises:
        ConfigError: There is no such method, or it does not have these bits; the message lists the methods.

    Example:
        >>> find_recipe("int8").title
        'PyTorch QAT at 8 bits'
    """
    word = name.lower()
    found = _RECIPE.fullmatch(ALIASES.get(word, word))
    if found is None:
        examples = [f"{method}-{bits}w{bits}f" for method in (*METHODS, *_OTHER_NAMES) for bits in range(1, 9)]
        raise ConfigError(
            f"--quantize must be METHOD-NwMf or an alias; got '{name}'{_known(word, [*examples, *ALIASES])}"
        )
    method = METHODS.get(_OTHER_NAMES.get(found[1], found[1]))
    if method is None:
        raise ConfigError(f"--quantize: unknown method '{found[1]}'{_known(found[1], [*METHODS, *_OTHER_NAMES])}")
    bits = dict(num_bit_w=int(found[2]), num_bit_a=int(found[3]))
    try:
        build_quant_layer(dict(type=f"{method.entry}Conv", **bits), nn.Conv2d(1, 1, 1))
    except ConfigError as error:
        raise ConfigError(f"--quantize {name}: {error}") from error
    if 32 in bits.values():
        raise ConfigError(f"--quantize {name}: weights and inputs must have 2 to 8 bits; 32 is float.")
    return Recipe(method, bits["num_bit_w"], bits["num_bit_a"])


def _known(given: str, candidates: list[str]) -> str:
    """Return the end of the message about an unknown recipe: the nearest name, and all there is."""
    aliases = ", ".join(f"{alias} ({meaning})" for alias, meaning in ALIASES.items())
    return (
        f"{suggest(given, candidates)} Methods: {', '.join(METHODS)}, each with N bits for weights and M for inputs, "
        f"as in lsq-4w4f; aliases: {aliases}."
    )

"""`Quantizer`, the base of every method: state, first values, and one formula for training and export.

    steps   = round(clip(normalize(x) / scale, quant_min - zero_point, quant_max - zero_point))
    forward = steps * scale                  # fake quantize
    integer = steps + zero_point             # to_integer()

A method says what `scale` and `zero_point` are (`grid`), what their first values are (`first_values`), and how
gradients pass the rounding (`formula`). State is filled in place, so that optimizer, EMA and DDP keep their tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lbitcls.quant.functional import SMALLEST_SCALE
from lbitcls.quant.grid_facts import GRID, describe, read_facts, sign_name
from lbitcls.quant.kernels import Elementwise
from lbitcls.quant.kernels.recompute import worthwhile
from lbitcls.quant.kernels.selection import select_at_first_use
from lbitcls.quant.spec import QParams, along, check_num_bits, compute_dtype, integer_range
from lbitcls.utils.errors import ConfigError, DataError, LbitclsError
from lbitcls.utils.jsontext import json_text

RangeRule = Callable[[Tensor, "Quantizer"], tuple[Tensor, Tensor]]


class NotInitializedError(LbitclsError):
    """A quantizer is used in eval before it ever saw data."""


class ScaleError(LbitclsError):
    """A quantizer's scale is not finite, or not positive."""


class Quantizer(nn.Module):
    """Maps a tensor to the nearest values of an integer grid, and says what the integers are.

    Args:
        num_bits: 2 to 8.
        role: "weight" or "input", where the layer uses it.
        signed: whether negative values are represented; None: decided once, from the first data.
        num_channels: number of separate grids along `channel_axis`; None: one grid for the tensor.
        channel_axis: the axis of the channels.
        narrow_range: leave out the most negative integer; None: for 8-bit weights, whose signs an exporter flips.

    Attributes:
        place: full name in the model, for messages; empty where no transformer put the quantizer there.
        initialized: buffer; whether the parameters took their first values.
        enabled: buffer; when False the quantizer hands its input on unchanged.
        folded: whether the tensor is a weight times the factors of a BatchNorm that is folded into it.
    """

    formula: Elementwise
    """How gradients pass the rounding; called with `x`, the channel axis, scale, and the bounds in steps."""

    lowest_bits: ClassVar[int] = 2
    fixed_options: ClassVar[tuple[str, ...]] = ()
    """Options of this class that the method decides itself, so that a config cannot give them."""
    needs_data: bool = True
    """Whether the grid's parameters take first values from data (else the grid is constant)."""

    initialized: Tensor
    enabled: Tensor
    negative: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        num_bits: int,
        role: str = "input",
        signed: bool | None = None,
        num_channels: int | None = None,
        channel_axis: int = 0,
        narrow_range: bool | None = None,
    ) -> None:
        super().__init__()
        if role not in ("weight", "input"):
            raise ConfigError(f"a quantizer's role is 'weight' or 'input'; got '{role}'.")
        self.num_bits = check_num_bits(num_bits, type(self).__name__, self.lowest_bits)
        self.role = role
        self.place = ""
        self.num_channels = num_channels
        self.channel_axis = None if num_channels is None else channel_axis
        self.narrow_range = (role == "weight" and num_bits == 8) if narrow_range is None else narrow_range
        self.folded = False
        self._recipe: Callable[[], Tensor] | None = None
        self._signed_by_config = True if role == "weight" and signed is None else signed
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self.register_buffer("enabled", torch.ones((), dtype=torch.bool))
        self.register_buffer("negative", torch.tensor(bool(self._signed_by_config)))
        self.register_buffer("low", torch.zeros(()), persistent=False)
        self.register_buffer("high", torch.zeros(()), persistent=False)
        self.refresh()

    # What a method gives

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        """What `formula` takes after `x` and the channel axis: `scale` first; each of shape () or (C,)."""
        raise NotImplementedError

    def first_values(self, x: Tensor) -> None:
        """Fill the parameters from data, in place, by the method's own rule (no gradient; `x` is normalized)."""
        raise NotImplementedError

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        """Fill the parameters, in place, so that the grid spans `lower` <= 0 to `upper` >= 0 (one for each grid)."""
        raise NotImplementedError

    def integer_range(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        return integer_range(self.num_bits, self.signed, self.narrow_range)

    def zero_point(self) -> Tensor:
        """The integer that stands for 0, as a float of the scale's shape."""
        return torch.zeros_like(self.low)

    def levels(self) -> Tensor | None:
        """The integers that occur, ascending, where not every one in the range does; else None."""
        return None

    def normalize(self, x: Tensor) -> Tensor:
        """What is done to `x` before it is divided by the scale (computed in `compute_dtype`)."""
        return x

    def regularization(self) -> Tensor | None:
        """The method's own addition to the loss, or None."""
        return None

    # What every method has

    def forward(self, x: Tensor) -> Tensor:
        """Fake quantize `x`: values on the grid, in the shape and dtype of `x`."""
        if not self._active:
            return x
        if not self._ready:
            self._take_first_values(x)
        grid = self.grid(x)
        if self.training and not torch.compiler.is_compiling() and _needs_gradient(x, *grid):
            select_at_first_use(x.device)
        if torch.is_grad_enabled() and worthwhile():
            self._recipe = partial(self._again, x, tuple(t.detach() for t in grid))
        return self.formula(self.normalize(x), self.channel_axis, *grid).to(x.dtype)

    def take_recipe(self) -> Callable[[], Tensor] | None:
        """How to make the last result again, on the grid it was made on; None where nothing was quantized."""
        recipe, self._recipe = self._recipe, None
        return recipe

    def _again(self, x: Tensor, grid: tuple[Tensor, ...]) -> Tensor:
        return self.formula.value(self.normalize(x), self.channel_axis, grid).to(x.dtype)

    @torch.no_grad()
    def to_integer(self, x: Tensor) -> Tensor:
        """The integers that `x` becomes, int32, between `quant_min` and `quant_max`."""
        grid = self.grid(x)
        x = x.to(compute_dtype(x))
        value = self.formula(self.normalize(x), self.channel_axis, *grid)
        steps = value / along(grid[0], x.dim(), self.channel_axis)
        return torch.round(steps + along(self.zero_point(), x.dim(), self.channel_axis)).to(torch.int32)

    @torch.no_grad()
    def qparams(self, x: Tensor | None = None) -> QParams:
        """The grid, as exporters read it.

        Args:
            x: the weight; needed where the grid follows it (DoReFa's 1-bit weights).

        Raises:
            ScaleError: a scale is NaN or infinite, or 0: a learned one that is no larger than `SMALLEST_SCALE`.
        """
        scale = self.grid(self.low.new_zeros((1, 1, 1, 1)) if x is None else x)[0]
        self._require_usable(scale)
        zero_point = self.zero_point().to(torch.int32).expand(scale.shape)
        return QParams(
            scale.clone(), zero_point.clone(), self.quant_min, self.quant_max, self.channel_axis, self.levels()
        )

    @property
    def signed(self) -> bool:
        """Whether the grid has negative values."""
        return self._negative

    @property
    def quant_min(self) -> int:
        """Smallest integer."""
        return self.integer_range()[0]

    @property
    def quant_max(self) -> int:
        """Largest integer."""
        return self.integer_range()[1]

    @property
    def is_initialized(self) -> bool:
        """Whether the first values are taken (the buffer's mirror: no device sync)."""
        return self._ready

    @property
    def is_enabled(self) -> bool:
        """Whether the quantizer quantizes (the buffer's mirror: no device sync)."""
        return self._active

    @torch.no_grad()
    def initialize(self, x: Tensor, rule: RangeRule | None = None) -> None:
        """Take the first values from `x`, taken before or not; decides `signed` if the config did not.

        Args:
            x: a weight, or a sample of the inputs.
            rule: finds each grid's range in a matrix (grids, values); None: the method's own rule.

        Raises:
            DataError: a value in `x` is not finite, or so large that the grid would not be.
        """
        self._require_finite(x, "what it quantizes holds")
        given, x = x, self.normalize(x.detach().to(compute_dtype(x)))
        if self._signed_by_config is None:
            self.negative.fill_(bool((x < 0).any()))
            self.refresh()
        if rule is None:
            self.first_values(x)
        else:
            self.set_range(*rule(per_grid(x, self.channel_axis), self))
        for tensor in (*self.parameters(recurse=False), *self.grid(given)):
            self._require_finite(tensor, "the first values of its grid hold")
        self.initialized.fill_(True)
        self.refresh()

    def _require_finite(self, x: Tensor, what: str) -> None:
        finite = x.detach().isfinite()
        if not finite.all():
            cause = "weights of a run that diverged" if self.role == "weight" else "an image, or weights that diverged"
            raise DataError(
                f"{self._name} cannot take first values: {what} {int((~finite).sum())} of {x.numel()} values that are "
                f"NaN or infinite. Look for {cause}."
            )

    def _require_usable(self, scale: Tensor) -> None:
        smallest = SMALLEST_SCALE if self.needs_data else 0.0
        bad = ~(scale.isfinite() & (scale > smallest))
        if bad.any():
            raise ScaleError(
                f"{self._name}: {int(bad.sum())} of {scale.numel()} scales are not finite or not positive (the first: "
                f"{scale[bad][0].item():.3g}), so there is no grid. The training diverged or the checkpoint is "
                "damaged: take an earlier checkpoint, or calibrate the model again."
            )

    @property
    def _name(self) -> str:
        return self.place or f"a {self.num_bits}-bit {self.role} quantizer ({type(self).__name__})"

    def enable(self, enabled: bool = True) -> None:
        """Switch the quantizer on or off; while off, its parameters need no gradient."""
        self.enabled.fill_(enabled)
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(enabled)
        self.refresh()

    def refresh(self) -> None:
        """Read the buffers again after they were changed from outside (loading, a broadcast)."""
        self._ready = not self.needs_data or bool(self.initialized)
        self._active = bool(self.enabled)
        self._negative = bool(self.negative)
        self.low.fill_(self.quant_min)
        self.high.fill_(self.quant_max)

    @torch.compiler.disable
    def _take_first_values(self, x: Tensor) -> None:
        if not self.training:
            raise NotInitializedError(
                f"{f'{self.place}: ' if self.place else ''}this {self.num_bits}-bit {self.role} quantizer "
                f"({type(self).__name__}) never saw data, so it has no "
                "scale: call lbitcls.quant.calibrate(model, batches), or load the checkpoint of a quantized model."
            )
        self.initialize(x)

    def grid_facts(self, signed: bool | None = None) -> dict[str, Any]:
        """What decides the meaning of the parameters' values; `signed`: as if the sign were so."""
        before = self._negative
        self._negative = before if signed is None else signed
        try:
            integers = list(self.integer_range())
        finally:
            self._negative = before
        return {
            "method": type(self).__name__,
            "bits": self.num_bits,
            "integers": integers,
            "channels": self.num_channels,
            "axis": self.channel_axis,
            "folded": self.folded,
        }

    def misfit(self, state: Mapping[str, Tensor], prefix: str) -> str | None:
        """Why the values that a state dict has under `prefix` are not for this quantizer; None: they are.

        One that has none there does not misfit. Where the state dict, of an older version, does not say which grid
        they belong to, names and shapes decide.
        """
        own = {name: value for name, value in self.state_dict().items() if name != GRID}
        given = {name: state[prefix + name] for name in (*own, GRID) if prefix + name in state}
        lacking = [name for name in own if name not in given]
        if not given:
            return None
        theirs = read_facts(given[GRID]) if GRID in given else {}
        if theirs and theirs.get("method") != type(self).__name__:
            return f"{describe(theirs)} there; {describe(self.grid_facts())} here"
        if lacking:
            return f"it lacks {', '.join(lacking)}"
        if self._signed_by_config not in (None, bool(given["negative"])):
            return f"{sign_name(not self._signed_by_config)} there, {sign_name(bool(self._signed_by_config))} here"
        facts = self.grid_facts(bool(given["negative"]))
        if GRID in given and theirs != facts:
            return f"{describe(theirs)} there; {describe(facts)} here"
        other = [name for name, value in own.items() if given[name].shape != value.shape]
        return f"{', '.join(other)} of another shape" if other else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recipe": None}  # it holds a tensor of a forward pass, which cannot be copied

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        text = json_text(self.grid_facts())
        destination[prefix + GRID] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # A float checkpoint has none of a quantizer's keys: the weights are new, so first values are taken anew.
        given = any(key.startswith(prefix) for key in state_dict)
        reason = self.misfit(state_dict, prefix)
        state_dict.pop(prefix + GRID, None)
        lacks = reason is not None and reason.startswith("it lacks")
        if reason is not None and not lacks:
            error_msgs.append(f"{prefix.removesuffix('.')} is for another grid: {reason}.")
        elif given:
            arguments = (strict, missing_keys, unexpected_keys, error_msgs)
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)
        if lacks or not given:
            self.initialized.fill_(False)
        self.refresh()

    def extra_repr(self) -> str:
        """Bits, role, grid and state."""
        state = "" if self._ready else ", not initialized"
        channels = "per tensor" if self.channel_axis is None else f"per channel ({self.num_channels})"
        sign = "signed" if self.signed else "unsigned"
        return f"{self.num_bits} bits, {self.role}, {sign}, {channels}{state}{'' if self._active else ', off'}"


def is_active(quantizer: Quantizer | None) -> bool:
    """Whether there is a quantizer, and it is switched on."""
    return quantizer is not None and quantizer.is_enabled


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def per_grid(x: Tensor, channel_axis: int | None) -> Tensor:
    """`x` as a matrix (grids, elements that share one): (1, n) per tensor, (C, n / C) per channel."""
    if channel_axis is None:
        return x.reshape(1, -1)
    return x.movedim(channel_axis, 0).reshape(x.shape[channel_axis], -1)


def extremes(x: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each grid: of shape () per tensor, (C,) per channel."""
    # A whole tensor is read in its own order: as one row, `per_grid`, it would be read across its memory format.
    both = torch.aminmax(x) if channel_axis is None else torch.aminmax(per_grid(x, channel_axis), dim=1)
    return both.min, both.max


def per_channel(values: Tensor, x: Tensor, channel_axis: int | None) -> Tensor:
    """The values (grids,) of `per_grid` rows, shaped to broadcast against `x`."""
    return values[0] if channel_axis is None else along(values, x.dim(), channel_axis)


@torch.no_grad()
def fill(parameter: Tensor, values: Tensor) -> None:
    """Fill a parameter of shape () or (C,) in place with the values of its grids."""
    parameter.copy_(values.reshape(parameter.shape))


def fill_scale(parameter: Tensor, scale: Tensor, otherwise: float) -> None:
    """Fill a scale in place; a grid that saw zeros only takes the mean over all, or `otherwise` where that is 0."""
    mean = scale.mean()
    fill(parameter, torch.where(scale > 0, scale, torch.where(mean > 0, mean, otherwise)))

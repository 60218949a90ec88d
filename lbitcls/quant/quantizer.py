"""`Quantizer`, the base class of every method: state, initial values, one formula for training and export.

    steps   = round(clip(normalize(x) / scale, quant_min - zero_point, quant_max - zero_point))
    forward = steps * scale                  # fake quantize
    integer = steps + zero_point             # to_integer()

A method defines `scale` and `zero_point` (`grid`), their initial values (`first_values`), and how gradients pass the
rounding (`formula`). State is filled in place, so that optimizer, EMA and DDP keep their tensors.
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
from lbitcls.quant.quantizer_errors import NotInitializedError, ScaleError, require_finite
from lbitcls.quant.spec import QParams, along, check_num_bits, compute_dtype, integer_range, per_grid
from lbitcls.quant.weight_norm import chosen, norm_fact, restore, standardize
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.jsontext import json_text

OWN_METHODS = "lbitcls.quant.quantizers."
"""Modules of this package's methods: their grids depend on the shape of an input, never on its values."""
RangeRule = Callable[[Tensor, "Quantizer"], tuple[Tensor, Tensor]]


class Quantizer(nn.Module):
    """Module that maps a tensor to the nearest values of an integer grid, and describes the integers.

    Args:
        num_bits: Number of bits, 2 to 8.
        role: Use in the layer, "weight" or "input".
        signed: Represent negative values; None: decided once, from the first data.
        num_channels: Number of separate grids along `channel_axis`; None: one grid for the tensor.
        channel_axis: Axis of the channels.
        narrow_range: Leave out the most negative integer; None: for 8-bit weights, whose signs an exporter flips.
        weight_norm: Weights only: quantize (w - mean) / std of each grid's weights; None: if the method's paper does.

    Attributes:
        place: Full name in the model, for messages; empty unless a transformer inserted the quantizer.
        final_bits: Bits at the end of training; `num_bits` has more in an earlier stage of a progressive run.
        initialized: Buffer; True once the parameters have their initial values.
        enabled: Buffer; if False, the quantizer returns its input unchanged.
        folded: True if the tensor is a weight times the factors of a BatchNorm folded into it.
        adds_norm: True if the option adds `weight_norm` to a method whose paper does not normalize weights.
    """

    formula: Elementwise
    """Value and gradients of the rounding; called with `x`, the channel axis, scale, and the bounds in steps."""

    lowest_bits: ClassVar[int] = 2
    fixed_options: ClassVar[tuple[str, ...]] = ()
    """Options of this class that the method fixes, so that a config cannot set them."""
    norm_of_method: ClassVar[bool] = False
    """True if the method's paper normalizes weights: the default of `weight_norm`."""
    unbiased: bool = False
    needs_data: bool = True
    """True if the grid's parameters are initialized from data (else the grid is constant)."""
    bits_leave_range: ClassVar[bool] = False
    """True if the parameters define the range, not a step, so that with other bits they stay as they are."""
    bits_are_fixed: ClassVar[bool] = False
    """True if the number of parameters depends on the bits, so that they cannot change in training."""

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
        weight_norm: bool | None = None,
    ) -> None:
        super().__init__()
        if role not in ("weight", "input"):
            raise ConfigError(f"a quantizer's role must be 'weight' or 'input'; got '{role}'.")
        self.weight_norm = chosen(weight_norm, role == "weight", self.norm_of_method)
        self.adds_norm = self.weight_norm and not self.norm_of_method
        self.num_bits = self.final_bits = check_num_bits(num_bits, type(self).__name__, self.lowest_bits)
        self.role = role
        self.place = ""
        self.num_channels = num_channels
        self.channel_axis = None if num_channels is None else channel_axis
        self._narrow_by_config = narrow_range
        self.folded = False
        self._recipe: Callable[[], Tensor] | None = None
        self._signed_by_config = True if role == "weight" and signed is None else signed
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self.register_buffer("enabled", torch.ones((), dtype=torch.bool))
        self.register_buffer("negative", torch.tensor(bool(self._signed_by_config)))
        self.register_buffer("low", torch.zeros(()), persistent=False)
        self.register_buffer("high", torch.zeros(()), persistent=False)
        self.refresh()

    # Supplied by each method

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the arguments of `formula` after `x` and the channel axis, `scale` first; shapes () or (C,)."""
        raise NotImplementedError

    def first_values(self, x: Tensor) -> None:
        """Initialize the parameters from data, in place, by the method's rule (no gradient; `x` is normalized)."""
        raise NotImplementedError

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        """Fill the parameters in place, so that each grid spans its `lower` <= 0 to its `upper` >= 0."""
        raise NotImplementedError

    def integer_range(self) -> tuple[int, int]:
        """Return the smallest and largest integer."""
        narrow = self._narrow_by_config
        return integer_range(
            self.num_bits, self.signed, self.role == "weight" and self.num_bits == 8 if narrow is None else narrow
        )

    def zero_point(self) -> Tensor:
        """Return the integer that stands for 0, as a float of the scale's shape."""
        return torch.zeros_like(self.low)

    def levels(self) -> Tensor | None:
        """Return the integers that occur, ascending, or None if all integers in the range occur."""
        return None

    def thresholds(self) -> Tensor | None:
        """Return the values above which x reaches the next level (`QParams.thresholds`), or None if they are even."""
        return None

    def normalize(self, x: Tensor) -> Tensor:
        """Return `x` as it is before division by the scale (computed in `compute_dtype`); overrides call this first."""
        return standardize(x, self.channel_axis, self.unbiased) if self.weight_norm else x

    def denormalize(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the tensor that `normalize`, with the statistics of `x`, maps to `y`; overrides end with this."""
        return restore(y, x, self.channel_axis, self.unbiased) if self.weight_norm else y

    def regularization(self) -> Tensor | None:
        """Return the method's addition to the loss, or None."""
        return None

    def observe(self, x: Tensor) -> None:
        """Update running statistics from a training batch, before it is quantized."""

    # Shared by all methods

    def forward(self, x: Tensor) -> Tensor:
        """Fake quantize `x`: values on the grid, in the shape and dtype of `x`."""
        if not self._active:
            return x
        if not self._ready:
            self.take_first_values(x)
        elif self.training:
            self.observe(x)
        grid = self.arguments(x)
        learns = not torch.compiler.is_compiling() and self.training and torch.is_grad_enabled()
        if learns and any(t.requires_grad for t in (x, *grid)):
            select_at_first_use(x.device.type)
        if torch.is_grad_enabled() and worthwhile():
            self._recipe = partial(self._again, x, tuple(t.detach() for t in grid))
        return self.formula(self.normalize(x), self.channel_axis, *grid).to(x.dtype)

    def arguments(self, x: Tensor) -> tuple[Any, ...]:
        """Return `grid(x)`. In a compiled model bounds of this package's methods are numbers: loops are faster."""
        grid = self.grid(x)
        if not torch.compiler.is_compiling() or not type(self).__module__.startswith(OWN_METHODS):
            return grid
        numbers = ((self.low, float(self.quant_min)), (self.high, float(self.quant_max)))
        return tuple(next((number for bound, number in numbers if p is bound), p) for p in grid)

    def take_recipe(self) -> Callable[[], Tensor] | None:
        """Return a function that recomputes the last result on its grid, or None if nothing was quantized."""
        recipe, self._recipe = self._recipe, None
        return recipe

    def _again(self, x: Tensor, grid: tuple[Tensor, ...]) -> Tensor:
        return self.formula.value(self.normalize(x), self.channel_axis, grid).to(x.dtype)

    @torch.no_grad()
    def to_integer(self, x: Tensor) -> Tensor:
        """Return `x` as integers, int32, from `quant_min` to `quant_max`."""
        grid = self.grid(x)
        x = x.to(compute_dtype(x))
        value = self.formula(self.normalize(x), self.channel_axis, *grid)
        steps = value / along(grid[0], x.dim(), self.channel_axis)
        return torch.round(steps + along(self.zero_point(), x.dim(), self.channel_axis)).to(torch.int32)

    @torch.no_grad()
    def qparams(self, x: Tensor | None = None) -> QParams:
        """Return the grid, as exporters read it.

        Args:
            x: Weight; needed if the grid depends on it (DoReFa's 1-bit weights).

        Raises:
            ScaleError: A scale is NaN, infinite or 0, or a learned scale is not greater than `SMALLEST_SCALE`.
        """
        scale = self.grid(self.low.new_zeros((1, 1, 1, 1)) if x is None else x)[0]
        self._require_usable(scale)
        zero_point = self.zero_point().to(torch.int32).expand(scale.shape)
        low, high = self._range
        return QParams(
            scale.clone(), zero_point.clone(), low, high, self.channel_axis, self.levels(), self.thresholds()
        )

    @property
    def signed(self) -> bool:
        """True if the grid has negative values."""
        return self._negative

    @property
    def quant_min(self) -> int:
        """Smallest integer."""
        return self._range[0]

    @property
    def quant_max(self) -> int:
        """Largest integer."""
        return self._range[1]

    @property
    def is_initialized(self) -> bool:
        """True once the parameters have initial values (a copy of the buffer: no device sync)."""
        return self._ready

    @property
    def is_enabled(self) -> bool:
        """True if the quantizer quantizes (a copy of the buffer: no device sync)."""
        return self._active

    @torch.no_grad()
    def initialize(self, x: Tensor, rule: RangeRule | None = None) -> None:
        """Initialize from `x`, even if initialized before; decides `signed` unless the config does.

        Args:
            x: Weight, or sample of the inputs.
            rule: Function that finds each grid's range in a matrix (grids, values); None: the method's own rule.

        Raises:
            DataError: A value in `x` is not finite, or is so large that the grid would not be finite.
        """
        require_finite(x, self._name, "its data contains", self.role)
        given, x = x, self.normalize(x.detach().to(compute_dtype(x)))
        if self._signed_by_config is None:
            self.negative.fill_(bool((x < 0).any()))
            self.refresh()
        if rule is None:
            self.first_values(x)
        else:
            self.set_range(*rule(per_grid(x, self.channel_axis), self))
        for tensor in (*self.parameters(recurse=False), *self.grid(given)):
            require_finite(tensor, self._name, "its grid contains", self.role)
        self.initialized.fill_(True)
        self.refresh()

    def _require_usable(self, scale: Tensor) -> None:
        bad = ~(scale.isfinite() & (scale > (SMALLEST_SCALE if self.needs_data else 0.0)))
        if bad.any():
            raise ScaleError(
                f"{self._name}: {int(bad.sum())} of {scale.numel()} scales are not finite or not positive (first: "
                f"{scale[bad][0].item():.3g}), so there is no grid. The training diverged or the checkpoint is "
                "damaged: use an earlier checkpoint, or calibrate the model again."
            )

    @property
    def _name(self) -> str:
        return self.place or f"a {self.num_bits}-bit {self.role} quantizer ({type(self).__name__})"

    def enable(self, enabled: bool = True) -> None:
        """Switch the quantizer on or off; while off, its parameters require no gradient."""
        self.enabled.fill_(enabled)
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(enabled)
        self.refresh()

    def refresh(self) -> None:
        """Reread the buffers after a change from outside (loading, a broadcast)."""
        self._ready = not self.needs_data or bool(self.initialized)
        self._active = bool(self.enabled)
        self._negative = bool(self.negative)
        self._range = self.integer_range()
        self.low.fill_(self.quant_min)
        self.high.fill_(self.quant_max)

    @torch.compiler.disable
    def take_first_values(self, x: Tensor) -> None:
        """Initialize from data, in training."""
        if not self.training:
            raise NotInitializedError(
                f"{f'{self.place}: ' if self.place else ''}this {self.num_bits}-bit {self.role} quantizer "
                f"({type(self).__name__}) has not seen data, so it has no "
                "scale: call lbitcls.quant.calibrate(model, batches), or load the checkpoint of a quantized model."
            )
        self.initialize(x)

    def grid_facts(self, signed: bool | None = None) -> dict[str, Any]:
        """Return the facts that define the parameters' meaning; `signed` overrides the sign if not None."""
        before, self._negative = self._negative, self._negative if signed is None else signed
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
        } | norm_fact(self.weight_norm, self.role == "weight" and self.norm_of_method)

    def misfit(self, state: Mapping[str, Tensor], prefix: str) -> str | None:
        """Return why a state dict's values under `prefix` do not fit this quantizer, or None if they do.

        A state dict without such values fits. If it is from an older version and does not record the grid, names and
        shapes decide.
        """
        own = {name: value for name, value in self.state_dict().items() if name != GRID}
        given = {name: state[prefix + name] for name in (*own, GRID) if prefix + name in state}
        if not given:
            return None
        theirs = read_facts(given[GRID]) if GRID in given else {}
        if theirs and theirs.get("method") != type(self).__name__:
            return f"{describe(theirs)} there; {describe(self.grid_facts())} here"
        if lacking := [name for name in own if name not in given]:
            return f"it lacks {', '.join(lacking)}"
        if self._signed_by_config not in (None, bool(given["negative"])):
            return f"{sign_name(not self._signed_by_config)} there, {sign_name(bool(self._signed_by_config))} here"
        facts = self.grid_facts(bool(given["negative"]))
        if GRID in given and theirs != facts:
            return f"{describe(theirs)} there; {describe(facts)} here"
        other = [name for name, value in own.items() if given[name].shape != value.shape]
        return f"{', '.join(other)} of another shape" if other else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recipe": None}  # contains a tensor of a forward pass, which cannot be copied

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
        # A float checkpoint has no quantizer keys: the weights are new, so the quantizer is initialized again.
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
        """Return bits, role, grid and state as text."""
        channels = "per tensor" if self.channel_axis is None else f"per channel ({self.num_channels})"
        state = ("" if self._ready else ", not initialized") + ("" if self._active else ", off")
        return f"{self.num_bits} bits, {self.role}, {sign_name(self.signed)}, {channels}{state}"


def is_active(quantizer: Quantizer | None) -> bool:
    """Return True if there is a quantizer and it is on."""
    return quantizer is not None and quantizer.is_enabled


@torch.no_grad()
def fill(parameter: Tensor, values: Tensor) -> None:
    """Fill a parameter of shape () or (C,) in place with the values of its grids."""
    parameter.copy_(values.reshape(parameter.shape))

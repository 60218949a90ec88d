"""Optimizer from the config's `optimizer`: any torch optimizer by name, with settings per kind of parameter.

`paramwise_cfg` means the same as in mmcv: `norm_decay_mult` (weight and bias of normalization layers),
`bias_decay_mult` and `bias_lr_mult` (other biases), `dwconv_decay_mult` (depthwise convolutions), `custom_keys`
(`{part of a name: dict(lr_mult=…, decay_mult=…)}`, instead of the others). Two rules are stricter: a custom key that
matches no parameter is an error, and the quantizers' parameters get no weight decay unless it is set for them.
`quantizers` sets factors, an optimizer or a learning rate policy for these parameters, `decay_by_bits` the weight decay
of quantized weights (APoT's paper, arXiv:1909.13144, uses 1e-4, and 3e-5 at 2 bits).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from lbitcls.core.optimizer_pair import QUANTIZERS, OptimizerPair
from lbitcls.core.schedule import as_number
from lbitcls.settings.learning_rate import Warmup
from lbitcls.settings.parse import parse
from lbitcls.settings.training_sections import ParamMults, ParamwiseConfig, QuantizerParams
from lbitcls.utils.arguments import check_names
from lbitcls.utils.checkpoint_content import shown_name
from lbitcls.utils.errors import ConfigError, require_dict, suggest

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Kind(NamedTuple):
    """An optimizer's class and arguments, checked."""

    place: str
    cls: type[torch.optim.Optimizer]
    given: dict[str, Any]

    def value(self, argument: str) -> Any:
        """Return the given argument, or its default; None if the class lacks it."""
        return self.given.get(argument, _default(self.cls, argument))

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        try:
            optimizer = self.cls(groups, **self.given)
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
            raise ConfigError(
                f"{self.place}: {self.cls.__name__} rejects its settings or this model: {error}"
            ) from error
        _check_ranges(self.place, self.given)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer


class _Key(NamedTuple):
    """Properties that the parameters of a group share."""

    lr_mult: float
    decay_mult: float
    apart: bool = False  # of quantizers, with an optimizer or a schedule of their own
    bits: int | None = None  # of quantized weights, if the weight decay depends on them


def build_optimizer(
    model: nn.Module,
    cfg: dict[str, Any],
    quantizers: Iterable[nn.Parameter] = (),
    lr_mults: Mapping[int, float] | None = None,
    bits: Mapping[int, int] | None = None,
    final_bits: Mapping[int, int] | None = None,
) -> torch.optim.Optimizer:
    """Build the optimizer described by `cfg` for every parameter of `model`.

    It includes frozen parameters (skipped while they have no gradient), so that they can be unfrozen.

    Args:
        model: Model whose parameters are grouped by learning rate and weight decay.
        cfg: Section with `type` (a class of `torch.optim`), its arguments, and `paramwise_cfg`.
        quantizers: Parameters that quantizers learn: without weight decay, unless `paramwise_cfg` sets one.
        lr_mults: Additional factors on the learning rate, by a parameter's `id`.
        bits: Number of bits of the quantized weights, by a parameter's `id`; for `decay_by_bits`.
        final_bits: Those at the end of training, if they change: weights that have the same change together.

    Returns:
        The optimizer; an `OptimizerPair` if `paramwise_cfg.quantizers` sets one for the quantizers' parameters.

    Raises:
        ConfigError: The optimizer or an argument is unknown, or a part of `paramwise_cfg` matches nothing.
    """
    given = require_dict("optimizer", cfg)
    paramwise = _read_paramwise(given.pop("paramwise_cfg", None))
    main, own = _read_kind("optimizer", given), None
    settings = paramwise.quantizers or QuantizerParams()
    if settings.optimizer is not None:
        own = _read_kind(f"{QuantizerParams.PLACE}.optimizer", settings.optimizer)
        if _default(own.cls, "weight_decay") is not None:
            own.given.setdefault("weight_decay", 0.0)
    learned = {id(p) for p in quantizers}
    if paramwise.quantizers is not None and not learned:
        raise ConfigError(f"{QuantizerParams.PLACE}: no quantizer of this model learns a parameter; leave it out.")
    groups = _group(model, paramwise, main, own, learned, lr_mults or {}, final_bits or bits or {})
    optimizer = main.build([group for key, group in groups.items() if own is None or not key.apart])
    if own is not None:
        optimizer = OptimizerPair(optimizer, own.build([group for key, group in groups.items() if key.apart]))
    follow_bits(optimizer, bits or {})
    return optimizer


def quantizer_policy(cfg: Mapping[str, Any]) -> Warmup | None:
    """Return the learning rate policy that a section `optimizer` sets for the quantizers' parameters, or None."""
    quantizers = _read_paramwise(cfg.get("paramwise_cfg")).quantizers
    return None if quantizers is None else quantizers.lr_config


def follow_bits(optimizer: torch.optim.Optimizer, bits: Mapping[int, int]) -> None:
    """Set the weight decay of quantized weights for their present numbers of bits, if it depends on them.

    Call it again after the bits change. Bits that `decay_by_bits` does not list keep the decay without it.

    Args:
        optimizer: Optimizer that `build_optimizer` built.
        bits: Number of bits by a weight's `id`.

    Raises:
        ConfigError: Weights of one group, which had the same bits when it was built, have different ones.
    """
    for group in optimizer.param_groups:
        if "decay_by_bits" not in group:
            continue
        found = {bits[id(parameter)] for parameter in group["params"]}
        if len(found) > 1:
            raise ConfigError(
                f"decay_by_bits: layers of equal bits must change together; now they have {sorted(found)}."
            )
        group["weight_decay"] = group["decay_by_bits"].get(found.pop(), group["other_decay"])


def _read_paramwise(given: Any) -> ParamwiseConfig:
    paramwise: ParamwiseConfig = parse(ParamwiseConfig, given or {}, ParamwiseConfig.PLACE)
    return paramwise


def _read_kind(place: str, cfg: Mapping[str, Any]) -> _Kind:
    given = dict(cfg)
    kind = _find(place, given.pop("type", None))
    rates = ("lr", "weight_decay")
    given = {
        key: as_number(f"{place}.{key}", value) if isinstance(value, str) or key in rates else value
        for key, value in given.items()
    }
    check_names(kind, {"params": [], **given})
    return _Kind(place, kind, given)


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the optimizer classes of `torch.optim`, by name."""
    return {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }


def _find(place: str, name: Any) -> type[torch.optim.Optimizer]:
    if name is None:
        raise ConfigError(f"{place} must be dict(type='SGD', lr=0.1, …); got one without 'type'.")
    known = optimizers()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"{place}: torch.optim has no optimizer '{name}'{suggest(str(name), known)} Known: {', '.join(known)}."
        )
    kind = known[name]
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(f"{place}: {name} computes the loss several times per step, which is not supported.")
    return kind


def _check_ranges(place: str, given: dict[str, Any]) -> None:
    """Check ranges that torch does not check; outside them no optimizer converges."""
    for key in ("momentum", "dampening", "momentum_decay", "alpha", "rho"):
        if given.get(key) is not None and not 0 <= given[key] <= 1:
            raise ConfigError(f"{place}.{key} must be a number from 0 to 1; got {given[key]!r}.")
    for key, value in given.items():
        if isinstance(value, float) and math.isinf(value):
            raise ConfigError(f"{place}.{key} must be a finite number; got {value!r}.")


def _default(kind: type, argument: str) -> Any:
    parameter = inspect.signature(kind).parameters.get(argument)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _group(
    model: nn.Module,
    paramwise: ParamwiseConfig,
    main: _Kind,
    own: _Kind | None,
    quantizers: set[int],
    lr_mults: Mapping[int, float],
    bits: Mapping[int, int],
) -> dict[_Key, dict[str, Any]]:
    """Return the parameter groups in the order in which they first occur, those apart last."""
    groups: dict[_Key, dict[str, Any]] = {}
    seen: set[int] = set()
    custom = paramwise.custom_keys or {}
    for name, parameter, module in _named_parameters(model):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        match = custom.get(_custom_key(custom, name) or "")
        key = _key(name, module, paramwise, id(parameter) in quantizers, match)
        key = key._replace(lr_mult=key.lr_mult * lr_mults.get(id(parameter), 1.0))
        if paramwise.decay_by_bits is not None and match is None:
            key = key._replace(bits=bits.get(id(parameter)))
        if key not in groups:
            groups[key] = _new_group(key, own if key.apart and own is not None else main, paramwise)
        groups[key]["params"].append(parameter)
    _check_matches(model, paramwise, bits)
    return dict(sorted(groups.items(), key=lambda item: item[0].apart))


def _check_matches(model: nn.Module, paramwise: ParamwiseConfig, bits: Mapping[int, int]) -> None:
    names = [name for name, _, _ in _named_parameters(model)]
    for key in sorted(paramwise.custom_keys or {}):
        if not any(key in name for name in names):
            raise ConfigError(
                f"optimizer.paramwise_cfg.custom_keys: '{key}' occurs in no parameter's name{suggest(key, names)}"
            )
    if paramwise.decay_by_bits is not None and not bits:
        raise ConfigError("optimizer.paramwise_cfg.decay_by_bits: this model has no quantized weights; leave it out.")


def _named_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter, nn.Module]]:
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            yield name, parameter, module


def _custom_key(custom: Mapping[str, ParamMults], name: str) -> str | None:
    """Return the longest key that occurs in `name` (the alphabetically first of equally long ones)."""
    matching = [key for key in custom if key in name]
    return min(matching, key=lambda key: (-len(key), key)) if matching else None


def _key(name: str, module: nn.Module, paramwise: ParamwiseConfig, quantizer: bool, custom: ParamMults | None) -> _Key:
    """Return the factors on the learning rate and the weight decay of one parameter, and whether it is apart."""
    settings = paramwise.quantizers or QuantizerParams()
    own = settings.optimizer is not None
    key = _Key(1.0, 1.0)
    if quantizer:
        key = _Key(_or(settings.lr_mult, 1.0), _or(settings.decay_mult, 1.0 if own else 0.0))
        key = key._replace(apart=own or settings.lr_config is not None)
    if custom is not None:
        lr_mult, decay_mult = (1.0, 1.0 if own or not quantizer else 0.0)
        return key._replace(lr_mult=_or(custom.lr_mult, lr_mult), decay_mult=_or(custom.decay_mult, decay_mult))
    if quantizer:
        return key
    is_norm, is_bias = isinstance(module, _NORMS), name.endswith("bias")
    depthwise = isinstance(module, _CONVS) and module.in_channels == module.groups > 1
    lr_mult = paramwise.bias_lr_mult if is_bias and not is_norm else 1.0
    if is_norm:
        return key._replace(lr_mult=lr_mult, decay_mult=paramwise.norm_decay_mult)
    if depthwise and paramwise.dwconv_decay_mult is not None:
        return key._replace(lr_mult=lr_mult, decay_mult=paramwise.dwconv_decay_mult)
    return key._replace(lr_mult=lr_mult, decay_mult=paramwise.bias_decay_mult if is_bias else 1.0)


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def _new_group(key: _Key, kind: _Kind, paramwise: ParamwiseConfig) -> dict[str, Any]:
    lr, decay = kind.value("lr"), kind.value("weight_decay")
    group: dict[str, Any] = {"params": []}
    if key.lr_mult != 1.0:
        if lr is None:
            raise ConfigError("paramwise_cfg or UnfreezeHook multiplies the learning rate, but optimizer sets no lr.")
        group["lr"] = lr * key.lr_mult
    if key.decay_mult != 1.0 and decay:
        group["weight_decay"] = decay * key.decay_mult
    if key.bits is not None:
        if decay is None:
            raise ConfigError(f"optimizer.paramwise_cfg.decay_by_bits: {kind.cls.__name__} has no weight_decay.")
        group |= {"decay_by_bits": dict(paramwise.decay_by_bits or {}), "other_decay": decay * key.decay_mult}
    if key.apart and paramwise.quantizers is not None and paramwise.quantizers.lr_config is not None:
        group["schedule"] = QUANTIZERS
    return group


class StateError(ValueError):
    """The state belongs to another optimizer or is damaged."""


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore a saved state, and check that `optimizer` can step with it.

    Raises:
        StateError: The state belongs to another optimizer or other parameters, or is damaged.
    """
    if isinstance(optimizer, OptimizerPair):
        for name, part in optimizer.parts.items():
            if not isinstance(state.get(name), Mapping):
                raise StateError(f"it has no state of the optimizer '{name}' of {optimizer.name}")
            load_optimizer(part, state[name])
        return
    kind = type(optimizer).__name__
    own = [dict(group) for group in optimizer.param_groups]
    expected = _first_state(optimizer)
    try:
        optimizer.load_state_dict(dict(state))
    except Exception as error:  # a damaged state may raise any error
        raise StateError(f"{kind} does not accept the state: {shown_name(str(error))}") from error
    for group, before in zip(optimizer.param_groups, own, strict=True):
        if lacking := sorted(before.keys() - group.keys()):
            raise StateError(f"the saved optimizer settings lack {', '.join(lacking)}, which {kind} has")
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for parameter, saved in optimizer.state.items():
        if id(parameter) not in known:
            raise StateError(f"the saved state is of parameters that {kind} does not have")
        _check_saved(kind, saved, {} if expected is None else expected(parameter))


def _check_saved(kind: str, saved: Any, expected: Mapping[str, Any]) -> None:
    """Compare the saved state of a parameter with the state that the optimizer keeps."""
    if not isinstance(saved, Mapping):
        raise StateError(f"the saved state of a parameter is not a state of {kind}")
    for name, value in expected.items():
        if not isinstance(value, torch.Tensor):
            continue
        found = saved.get(name)
        counts = value.dim() == 0 and type(found) in (int, float)
        if not counts and getattr(found, "shape", None) != value.shape:
            raise StateError(
                f"{kind} needs '{name}' of shape {tuple(value.shape)} for a parameter, but the state has none"
            )


def _first_state(optimizer: torch.optim.Optimizer) -> Callable[[torch.Tensor], Mapping[str, Any]] | None:
    """Return the state `optimizer` keeps per parameter, from a step on the meta device, or None if that fails."""
    groups = [{k: v for k, v in group.items() if k not in ("fused", "foreach")} for group in optimizer.param_groups]
    twins: dict[int, torch.Tensor] = {}
    for group in groups:
        for parameter in group["params"]:
            twin = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta", requires_grad=True)
            twin.grad = torch.empty_like(twin)
            twins[id(parameter)] = twin
        group["params"] = [twins[id(parameter)] for parameter in group["params"]]
    kind: Any = type(optimizer)
    try:
        double = kind(groups)
        double.step()
    except Exception:  # an optimizer that reads values
        return None
    return lambda parameter: double.state.get(twins[id(parameter)], {})

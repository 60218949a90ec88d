"""Optimizer from the config's `optimizer`: any torch optimizer by name, with settings per kind of parameter.

`paramwise_cfg` means the same as in mmcv: `norm_decay_mult` (weight and bias of normalization layers),
`bias_decay_mult` and `bias_lr_mult` (other biases), `dwconv_decay_mult` (depthwise convolutions), `custom_keys`
(`{part of a name: dict(lr_mult=…, decay_mult=…)}`, instead of the others). Two rules are stricter: a custom key that
matches no parameter is an error, and the quantizers' parameters get no weight decay unless a custom key sets it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lbitcls.core.schedule import as_number
from lbitcls.settings.parse import parse
from lbitcls.settings.training_sections import ParamMults, ParamwiseConfig
from lbitcls.utils.arguments import check_names
from lbitcls.utils.checkpoint_content import shown_name
from lbitcls.utils.errors import ConfigError, require_dict, suggest

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def build_optimizer(
    model: nn.Module,
    cfg: dict[str, Any],
    no_decay: Iterable[nn.Parameter] = (),
    lr_mults: Mapping[int, float] | None = None,
) -> torch.optim.Optimizer:
    """Build the optimizer described by `cfg` for every parameter of `model`.

    It includes frozen parameters (skipped while they have no gradient), so that they can be unfrozen.

    Args:
        model: Model whose parameters are grouped by learning rate and weight decay.
        cfg: Section with `type` (a class of `torch.optim`), its arguments, and `paramwise_cfg`.
        no_decay: Parameters without weight decay (those of quantizers).
        lr_mults: Additional factors on the learning rate, by a parameter's `id`.

    Raises:
        ConfigError: The optimizer or an argument is unknown, or a custom key matches nothing.
    """
    given = require_dict("optimizer", cfg)
    kind = _find(given.pop("type", None))
    paramwise: ParamwiseConfig = parse(ParamwiseConfig, given.pop("paramwise_cfg", None) or {}, ParamwiseConfig.PLACE)
    rates = ("lr", "weight_decay")
    given = {
        key: as_number(f"optimizer.{key}", value) if isinstance(value, str) or key in rates else value
        for key, value in given.items()
    }
    check_names(kind, {"params": [], **given})
    lr = given.get("lr", _default(kind, "lr"))
    decay = given.get("weight_decay", _default(kind, "weight_decay"))
    groups = _group(model, paramwise, lr, decay, {id(p) for p in no_decay}, lr_mults or {})
    try:
        optimizer = kind(groups, **given)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {kind.__name__} rejects its settings or this model: {error}") from error
    _check_ranges(given)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """Return the optimizer classes of `torch.optim`, by name."""
    return {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }


def _find(name: Any) -> type[torch.optim.Optimizer]:
    if name is None:
        raise ConfigError("optimizer must be dict(type='SGD', lr=0.1, …); got one without 'type'.")
    known = optimizers()
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"torch.optim has no optimizer '{name}'{suggest(str(name), known)} Known: {', '.join(known)}."
        )
    kind = known[name]
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(f"optimizer: {name} computes the loss several times per step, which is not supported.")
    return kind


def _check_ranges(given: dict[str, Any]) -> None:
    """Check ranges that torch does not check; outside them no optimizer converges."""
    for key in ("momentum", "dampening", "momentum_decay", "alpha", "rho"):
        if given.get(key) is not None and not 0 <= given[key] <= 1:
            raise ConfigError(f"optimizer.{key} must be a number from 0 to 1; got {given[key]!r}.")
    for key, value in given.items():
        if isinstance(value, float) and math.isinf(value):
            raise ConfigError(f"optimizer.{key} must be a finite number; got {value!r}.")


def _default(kind: type, argument: str) -> Any:
    parameter = inspect.signature(kind).parameters.get(argument)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _group(
    model: nn.Module, paramwise: ParamwiseConfig, lr: Any, decay: Any, no_decay: set[int], lr_mults: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Parameter groups, one for each pair of multipliers, in the order in which they first occur."""
    custom = paramwise.custom_keys or {}
    unmatched = set(custom)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[int] = set()
    for name, parameter, module in _named_parameters(model):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        key = _custom_key(custom, name)
        unmatched -= {k for k in custom if k in name}
        multipliers = _multipliers(name, module, paramwise, id(parameter) in no_decay, custom.get(key) if key else None)
        multipliers = multipliers[0] * lr_mults.get(id(parameter), 1.0), multipliers[1]
        if multipliers not in groups:
            groups[multipliers] = _new_group(multipliers, lr, decay)
        groups[multipliers]["params"].append(parameter)
    if unmatched:
        names = [name for name, _ in model.named_parameters()]
        key = sorted(unmatched)[0]
        raise ConfigError(
            f"optimizer.paramwise_cfg.custom_keys: '{key}' occurs in no parameter's name{suggest(key, names)}"
        )
    return list(groups.values())


def _named_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter, nn.Module]]:
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            yield name, parameter, module


def _custom_key(custom: Mapping[str, ParamMults], name: str) -> str | None:
    """Return the longest key that occurs in `name` (the alphabetically first of equally long ones)."""
    matching = [key for key in custom if key in name]
    return min(matching, key=lambda key: (-len(key), key)) if matching else None


def _multipliers(
    name: str, module: nn.Module, paramwise: ParamwiseConfig, quantizer: bool, custom: ParamMults | None
) -> tuple[float, float]:
    """Return the multipliers (learning rate, weight decay) of one parameter."""
    lr_mult, decay_mult = 1.0, 0.0 if quantizer else 1.0
    if custom is not None:
        given = custom.lr_mult, custom.decay_mult
        return lr_mult if given[0] is None else given[0], decay_mult if given[1] is None else given[1]
    if quantizer:
        return lr_mult, decay_mult
    is_norm, is_bias = isinstance(module, _NORMS), name.endswith("bias")
    depthwise = isinstance(module, _CONVS) and module.in_channels == module.groups > 1
    if is_bias and not is_norm:
        lr_mult = paramwise.bias_lr_mult
    if is_norm:
        decay_mult = paramwise.norm_decay_mult
    elif depthwise and paramwise.dwconv_decay_mult is not None:
        decay_mult = paramwise.dwconv_decay_mult
    elif is_bias:
        decay_mult = paramwise.bias_decay_mult
    return lr_mult, decay_mult


def _new_group(multipliers: tuple[float, float], lr: Any, decay: Any) -> dict[str, Any]:
    lr_mult, decay_mult = multipliers
    group: dict[str, Any] = {"params": []}
    if lr_mult != 1.0:
        if lr is None:
            raise ConfigError("paramwise_cfg or UnfreezeHook multiplies the learning rate, but optimizer sets no lr.")
        group["lr"] = lr * lr_mult
    if decay_mult != 1.0 and decay:
        group["weight_decay"] = decay * decay_mult
    return group


class StateError(ValueError):
    """The state belongs to another optimizer or is damaged."""


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore a saved state, and check that `optimizer` can step with it.

    Raises:
        StateError: The state belongs to another optimizer or other parameters, or is damaged.
    """
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
    for parameter, saved in optimizer.state.items():
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
            twin = torch.empty_like(parameter, device="meta", requires_grad=True)
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

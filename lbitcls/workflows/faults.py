"""All faults of a config's parts, where building them reports only the first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from lbitcls import registry
from lbitcls.registry import Registry
from lbitcls.utils.errors import reject_unknown_keys
from lbitcls.utils.failures import explain

Build = Callable[[Any], Any]
_NEEDS = " needs '"

INNER = {"loss": registry.LOSSES, "pipeline": registry.PIPELINES}
"""Arguments that are components, or lists of them."""
AROUND = {
    registry.BACKBONES.name: ("frozen", "pretrained", "init_cfg"),
    registry.DATASETS.name: ("data_root", "indices", "exclude_indices"),
    registry.HOOKS.name: ("priority",),
}
"""Keys that a component accepts beside its class's arguments, by the name of its registry."""


def error_of(build: Build, section: Any) -> str | None:
    """Return the message of the user's or the machine's error in `build(section)`; None if there is none."""
    try:
        build(section)
    except Exception as error:  # anything else is not the config's fault, and ends the check elsewhere
        told = explain(error)
        return None if told is None else str(told)
    return None


def faults(build: Build, section: Any) -> list[str]:
    """Return the errors of `build(section)`: after each, the key that causes it is left out.

    A key that `build` needs is not left out, so that errors behind its own are not found.
    """
    told: list[str] = []
    rest = section
    while (error := error_of(build, rest)) is not None and error not in told:
        told.append(error)
        keys = [key for key in rest if key != "type"] if isinstance(rest, Mapping) else []
        fewer = ({key: value for key, value in rest.items() if key != left} for left in keys)
        rest = next((less for less in fewer if _is_another(error, error_of(build, less))), rest)
    return told


def _is_another(error: str, after: str | None) -> bool:
    """Return True if leaving out a key removed an error, unless only because the key is needed."""
    return after != error and (after is None or _NEEDS not in after)


def component_faults(known: Registry, section: Any, place: str, build: Build | None = None) -> list[str]:
    """Return messages for all faults of a component and of the components in it.

    Args:
        known: Registry of its type.
        section: `dict(type=NAME, …)`.
        place: Location in the config, which goes before each message.
        build: Function that builds or checks it; None: the registry's, without the keys in `AROUND`.
    """
    told: list[str] = []
    rest = dict(section) if isinstance(section, Mapping) else section
    unknown = False
    if isinstance(rest, dict):
        for key in [key for key in INNER if key in rest]:
            inner = _inner_faults(INNER[key], rest[key], f"{place}.{key}")
            told += inner
            if inner:
                del rest[key]
        for key, message in [*_unknown(known, rest)]:
            told.append(_placed(place, message))
            del rest[key]
            unknown = True
    build = build or (lambda own: known.build(_without_around(known, own)))
    more = [message for message in faults(build, rest) if not (unknown and _NEEDS in message)]  # of its misspelled key
    return told + [_placed(place, message) for message in more]


def _inner_faults(known: Registry, value: Any, place: str) -> list[str]:
    if isinstance(value, (list, tuple)):
        from lbitcls.datasets.pipelines.compose import build_transform

        found = [component_faults(known, item, f"{place}.{i}", build_transform) for i, item in enumerate(value)]
        return [message for told in found for message in told]
    return [] if value is None else component_faults(known, value, place)


def _arguments(known: Registry, section: Mapping[str, Any]) -> list[str] | None:
    """Return the arguments of a component's class; None if it accepts any, or is not registered."""
    name = section.get("type")
    target = known.get(name) if isinstance(name, str) else None
    parameters = [] if target is None else list(inspect.signature(target).parameters.values())
    if target is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _unknown(known: Registry, section: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each key that a component's class does not accept, with the message."""
    names = _arguments(known, section)
    if names is None:
        return
    for key in section:
        if key not in (*names, "type", *AROUND.get(known.name, ())):
            error = error_of(lambda key: reject_unknown_keys(section["type"], [key], names), key)
            yield key, str(error)


def _without_around(known: Registry, section: Any) -> Any:
    names = _arguments(known, section) if isinstance(section, Mapping) else None
    left = [key for key in AROUND.get(known.name, ()) if key not in (names or ())]
    return {key: value for key, value in section.items() if key not in left} if left else section


def _placed(place: str, message: str) -> str:
    return message if place in message else f"{place}: {message}"


def model_faults(section: Mapping[str, Any]) -> list[str]:
    """Return messages for all faults of a classifier's own keys, its backbone, neck and head."""
    parts = {"backbone": registry.BACKBONES, "neck": registry.NECKS, "head": registry.HEADS}
    told = [f"model: {message}" for _, message in _unknown(registry.CLASSIFIERS, section)]
    for key, known in parts.items():
        if section.get(key) is not None:
            told += component_faults(known, section[key], f"model.{key}")
    return told


def quantization_faults(section: Mapping[str, Any]) -> list[str]:
    """Return messages for all faults of the entries and other keys of `quant_transformer`."""
    from lbitcls.quant import build_mtransformer

    policy = section.get("quan_policy")
    told: list[str] = []
    right: dict[str, Any] = {}

    def build(kind: str, entry: Any) -> None:
        build_mtransformer({"type": section.get("type"), "quan_policy": {kind: entry}})

    for kind, entry in policy.items() if isinstance(policy, Mapping) else ():
        own = faults(partial(build, kind), entry)
        told += own
        right |= {} if own else {kind: entry}
    return told + faults(build_mtransformer, {**section, "quan_policy": right} if told else section)

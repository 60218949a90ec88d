"""Outer form of a config's sections: dict, list, string or bool. The content of a dict is checked by its reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lbitcls.utils.errors import ConfigError, shown

DICTS = (  # or None, or False for a section that is switched off
    *("model", "data", "evaluation", "quant_transformer", "calibration", "optimizer", "optimizer_config", "lr_config"),
    *("checkpoint_config", "log_config", "dist_params", "custom_imports", "export"),
)
_LISTS = ("custom_hooks", "workflow")
_TEXTS = ("work_dir", "load_from", "resume_from", "device", "kernels")
_SWITCHES = (
    *("deterministic", "cudnn_benchmark", "find_unused_parameters", "sycbn", "cpu_only", "compile", "channels_last"),
)


def check_shapes(sections: Mapping[str, Any], meanings: Mapping[str, str]) -> None:
    """Raise `ConfigError` for a section of the wrong form.

    Args:
        sections: Sections of the config.
        meanings: Description of each section, for messages.
    """
    _check_texts("", sections)
    for names, kinds, form, sample in (
        (DICTS, (Mapping,), "a dict,", "dict(…)"),
        (_LISTS, (list, tuple), "a list,", "[…]"),
        (_TEXTS, (str, Path), "a string,", "'…'"),
        (_SWITCHES, (bool,), "a bool,", "True or False"),
    ):
        for name in names:
            value = sections.get(name)
            empty = value is None or value is False or (isinstance(value, (str, int)) and not value)
            if not empty and not isinstance(value, kinds) and not (names is _SWITCHES and value == 1):
                raise ConfigError(f"{name} ({meanings[name]}) must be {form} {name} = {sample}; got {shown(value)}.")
    _check_imports(sections.get("custom_imports") or {})
    _check_roots(sections.get("data_root"))
    ids = sections.get("gpu_ids")
    if ids is not None and not (isinstance(ids, (list, tuple, range)) and all(type(number) is int for number in ids)):
        raise ConfigError(f"gpu_ids ({meanings['gpu_ids']}) must be a list of integers ≥ 0; got {shown(ids)}.")
    level = sections.get("log_level")
    if level is not None and not isinstance(level, (str, int)):
        raise ConfigError(f"log_level ({meanings['log_level']}) must be a string, 'INFO'; got {shown(level)}.")


def _check_texts(place: str, value: Any) -> None:
    """Raise `ConfigError` for strings that no file or log can contain."""
    if isinstance(value, str) and ("\0" in value or (not value.isascii() and _broken(value))):
        raise ConfigError(f"{place} = {value!a} contains a NUL or half of a surrogate pair, which no file can contain.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_texts(f"{place}.{key}".lstrip("."), inner)
    elif isinstance(value, (list, tuple)):
        for position, inner in enumerate(value):
            _check_texts(f"{place}.{position}", inner)


def _broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_imports(section: Mapping[str, Any]) -> None:
    names = section.get("imports") or []
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, Sequence) or not all(isinstance(name, str) and name and name[0] != "." for name in given):
        raise ConfigError(f"custom_imports.imports must be a list of module names; got {shown(names)}.")


def _check_roots(roots: Any) -> None:
    given = roots if isinstance(roots, (list, tuple)) else [roots]
    if not all(root is None or isinstance(root, (str, Path)) for root in given):
        raise ConfigError(f"data_root must be a folder, '…', or a list of folders; got {shown(roots)}.")

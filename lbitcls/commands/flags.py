"""Arguments as people type them: a list of values before a positional argument, and flags that do not exist."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lbitcls.commands.base import SHORT_FORMS
from lbitcls.utils.errors import ConfigError, LbitclsError, nearest
from lbitcls.utils.files import EXPORTED
from lbitcls.utils.library import CONFIG_SUFFIXES

_FILE_SUFFIXES = (*CONFIG_SUFFIXES, ".pth", ".pt", ".safetensors", *EXPORTED)


def files_first(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Return the arguments with files moved from the end of a list of values to before it.

    So `--options optimizer.lr=0.1 config.py` does not take the config for an option.
    """
    done: list[str] = []
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        action = parser._option_string_actions.get(word)
        values = _until_flag(waiting) if action is not None and action.nargs == "+" and _has_config(parser) else []
        del waiting[: len(values)]
        files = next((at for at, value in enumerate(values) if _is_file_name(value)), len(values))
        done += [*values[files:], word, *values[:files]]
    return done


def check_flags(parser: argparse.ArgumentParser, argv: Sequence[str], verb: str) -> None:
    """Raise `ConfigError` for a flag that the verb lacks, with the flag or the `--options` that does it."""
    known = parser._option_string_actions
    for at, word in enumerate(argv):
        flag, _, value = word.partition("=")
        if word == "--":
            return
        if not flag.startswith("--") or " " in flag or any(name.startswith(flag) for name in known):
            continue
        following = argv[at + 1] if at + 1 < len(argv) else ""
        if not value and not following.startswith("--") and not _is_file_name(following):
            value = following
        hint = _hint(parser, flag.removeprefix("--"), value, argv)
        raise ConfigError(f"lbitcls {verb} has no option {flag}.{hint} lbitcls {verb} --help lists the options.")


def _hint(parser: argparse.ArgumentParser, name: str, value: str, argv: Sequence[str]) -> str:
    """Return the question that suggests an option for an unknown flag, after a space; empty if none is similar."""
    known = [option for option in parser._option_string_actions if option.startswith("--")]
    flag = f"--{name.lower().replace('_', '-')}"
    if flag in known:
        return f" Did you mean {_written(flag, value)}?"
    near = nearest(flag, known, cutoff=0.7)
    key = _key(name, argv, exactly=near is not None) if "--options" in known else None
    short = next((f"--{flag}" for flag, form in SHORT_FORMS.items() if form.key == key), None)
    if key is not None and short not in known:
        return f" Did you mean --options {key}={value or '…'}?"
    best = short if short in known else near
    return f" Did you mean {_written(best, value)}?" if best else ""


def _written(flag: str, value: str) -> str:
    return f"{flag} {value}".rstrip()


def _key(name: str, argv: Sequence[str], exactly: bool) -> str | None:
    """Return the config's key, in the form that `--options` accepts, that a flag of this name would set."""
    from lbitcls.utils.config import SECTIONS
    from lbitcls.utils.config_override import check_override, keys_named

    config = _config_in(argv)
    name = name.lower().replace("-", "_")
    if name in SECTIONS:
        return name
    found = keys_named(config, name, SECTIONS, exactly=True)
    found = found or [key for key in _settable() if key.rpartition(".")[2] == name]
    found = found or ([] if exactly else keys_named(config, name, SECTIONS))
    if not found:
        return None
    try:
        check_override(config, found[0], SECTIONS)
    except LbitclsError:
        return f"+{found[0]}"
    return found[0]


def _settable() -> Iterator[str]:
    """Yield the keys of the sections that a config need not set, and the most common ones of optimizers."""
    from lbitcls.settings.learning_rate import Warmup
    from lbitcls.settings.parse import section_fields
    from lbitcls.settings.sections import Settings

    yield from ("optimizer.momentum", "optimizer.weight_decay", "optimizer.nesterov")
    for section, hint in [("lr_config", Warmup), *section_fields(Settings).items()]:
        yield from (f"{section}.{name}" for name in section_fields(hint))


def _config_in(argv: Sequence[str]) -> Any:
    """Return the sections of the config among the arguments; empty if there is none, or it cannot be read."""
    from lbitcls.utils.config_files import existing, read_config

    empty: Mapping[str, Any] = {}
    for word in argv:
        if word.endswith(CONFIG_SUFFIXES) and "=" not in word:
            try:
                return read_config(existing(Path(word)))._cfg_dict
            except (LbitclsError, OSError):
                return empty
    return empty


def _has_config(parser: argparse.ArgumentParser) -> bool:
    return any(action.dest in ("config", "model") for action in parser._actions)


def _until_flag(words: Sequence[str]) -> list[str]:
    """Return the words before the next flag."""
    flag = next((at for at, word in enumerate(words) if word.startswith("--")), len(words))
    return list(words[:flag])


def _is_file_name(word: str) -> bool:
    return "=" not in word and word.endswith(_FILE_SUFFIXES)

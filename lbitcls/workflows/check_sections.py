"""A config's sections without their faults, and the list of faults found: for `lbitcls check`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lbitcls.assembly.session import open_session
from lbitcls.settings.parse import problems
from lbitcls.settings.sections import ConfigLike, Settings, as_config, given_sections, lacking, read_settings
from lbitcls.utils.config import SECTIONS, Config
from lbitcls.utils.errors import LbitclsError
from lbitcls.utils.failures import explain
from lbitcls.utils.published import is_published
from lbitcls.workflows.faults import error_of

_OF_SESSION = (("log_level",), ("device", "cpu_only", "gpu_ids"), ("num_threads",), ("dist_params",))
"""Sections that set up a session, in groups that are checked independently; `custom_imports` beside them."""


@dataclass
class Findings:
    """Problems of a config, in the order in which they were found, and parts that could not be checked."""

    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def note(self, *messages: str, place: str = "") -> None:
        """Add problems, each once; `place` goes before a message that does not name it."""
        for message in messages:
            told = message if place in message else f"{place}: {message}"
            if told not in self.problems:
                self.problems.append(told)

    @contextmanager
    def part(self, place: str = "", every: Callable[[], list[str]] = list) -> Iterator[None]:
        """Note an error of the user's or of the machine, and continue.

        Args:
            place: Location that goes before a message that does not name it.
            every: Function that returns the messages of all faults of this part, called after an error.
        """
        try:
            yield
        except (LbitclsError, OSError, MemoryError, RuntimeError) as error:
            told = explain(error)
            if told is None:
                raise
            messages = every()
            if not any(str(told) in message for message in messages):
                self.note(str(told), place=place)
            self.note(*messages)


def read_sections(cfg: ConfigLike, found: Findings) -> Config:
    """Return a copy of the config without the values that its sections reject; note these as problems."""
    given = as_config(cfg)
    sections = given.to_dict()
    found.note(*problems(Settings, given_sections(sections)))
    kept = {name: _right_part(name, value) if name in SECTIONS else value for name, value in sections.items()}
    right = Config(kept, filename=given.filename)
    missing = [name for name in ("model", "data", "optimizer", "total_epochs") if sections.get(name) in (None, {})]
    if missing:
        found.note(lacking(missing, "training", given))
    return right


def _right_part(name: str, value: Any) -> Any:
    """Return a section without its wrong keys; None if the rest is not a valid section."""
    if not problems(Settings, given_sections({name: value})):
        return value
    if not isinstance(value, Mapping):
        return None
    right = {key: item for key, item in value.items() if not problems(Settings, {name: {key: item}})}
    return None if problems(Settings, given_sections({name: right})) else right


def opening(cfg: ConfigLike, found: Findings) -> Settings:
    """Return settings that open a session; if the config's do not, those without its wrong sections."""
    if error_of(_open, cfg) is None:
        return read_settings(cfg).changed(log_level="WARNING")
    sections = as_config(cfg).to_dict()
    imports = sections.pop("custom_imports", None) or {}
    names = imports.get("imports") or ()
    for name in [names] if isinstance(names, str) else names:
        with found.part(), open_session(read_settings({"custom_imports": {**imports, "imports": [name]}})):
            pass
    for group in _OF_SESSION:
        own = {name: sections.pop(name) for name in group if name in sections}
        if (error := error_of(_open, own)) is None:
            sections |= own
        else:
            found.note(error)
    return read_settings(sections | {"log_level": "WARNING"})


def _open(cfg: ConfigLike) -> None:
    with open_session(read_settings(cfg)):
        pass


def dry(cfg: ConfigLike, found: Findings) -> Config:
    """Return the config of a run that starts no processes, compiles no kernels and downloads nothing."""
    dry = copy.deepcopy(as_config(cfg))
    dry.seed, dry.kernels, dry.total_epochs = dry.get("seed") or 0, "plain", dry.get("total_epochs") or 1
    if dry.get("data"):
        dry.data.workers_per_gpu = 0
    model: Any = dry.get("model")
    owners: tuple[Any, ...] = (model, model.get("backbone")) if isinstance(model, dict) else ()
    for owner in owners:
        for key in _fetched(owner):
            found.unchecked.append(f"{key}={owner[key]!r}, which training may download")
            owner[key] = None if owner is model or key == "init_cfg" else False
    teacher = (dry.get("distill") or {}).get("teacher", {}).get("checkpoint")
    if is_published(teacher):
        found.unchecked.append(f"distill.teacher.checkpoint={teacher!r}, which training may download")
        dry.distill = None
    return dry


def _fetched(owner: Any) -> list[str]:
    """Return the keys of a part of the model that name downloadable weights."""
    given = dict(owner) if isinstance(owner, dict) else {}
    init = given.get("init_cfg")
    named = {
        "pretrained": given.get("pretrained"),
        "init_cfg": init.get("checkpoint") if isinstance(init, dict) else None,
    }
    return [key for key, name in named.items() if name is True or (isinstance(name, str) and is_published(name))]

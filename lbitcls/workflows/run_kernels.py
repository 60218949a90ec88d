"""Kernels of a run's quantizers: the config's, or those of the run that it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lbitcls.assembly.session import Session
from lbitcls.quant.kernels import KINDS, describe_kernels, select_kernels
from lbitcls.quant.kernels.selection import AUTOCAST, COMPILED, check_kernels, kernels_name, parse_kernels
from lbitcls.settings.sections import Settings
from lbitcls.utils.dist import broadcast_object, gather_objects
from lbitcls.utils.errors import DependencyError

Start = tuple[Path, dict[str, Any]] | None
"""Checkpoint to resume from, and its content."""


def choose_kernels(settings: Settings, start: Start, session: Session) -> str | None:
    """Select the kernels of a run and log them; return their name, or None for a float model.

    A config that names kernels gets them. One that says `auto` gets those of the resumed run, so that it continues
    bit-identically; without one, the best that the machines of all processes run.
    """
    if not settings.quant_transformer:
        return None
    wanted, saved = _wanted(settings), _saved(start)
    going_on = saved is not None and wanted in ("auto", saved)
    if saved is not None and not going_on:
        session.logger.warning(
            "kernels='%s', but the run was started with '%s': it continues differently.", wanted, saved
        )
    can_run_kernels(settings, start, session.device)
    kernels = saved if saved is not None and going_on else wanted
    chosen = select_kernels(kernels, session.device, why_simulated=_why_simulated(settings))
    agreed = _weakest(chosen)
    if agreed != chosen:
        select_kernels(agreed, session.device)
    reason = " The run was started with them." if going_on else ""
    session.logger.info("%s%s", describe_kernels(session.device.type), reason)
    return agreed


def _why_simulated(settings: Settings) -> str:
    """Return the reason why `auto` shall not choose integer kernels for a run, or ""."""
    if settings.compile:
        return COMPILED
    return AUTOCAST if settings.amp is not None else ""


def can_run_kernels(settings: Settings, start: Start, device: torch.device) -> None:
    """Raise `DependencyError` if this machine cannot run the kernels of a run; compiles nothing."""
    saved = _saved(start)
    if start is None or saved is None or settings.kernels.kind != "auto":
        check_kernels(settings.kernels.kind, device)
        return
    try:
        check_kernels(parse_kernels(saved)[0], device)
    except DependencyError as error:
        raise DependencyError(
            f"{start[0]} is a run with {saved} kernels. {error} Set in the config, or by --options kernels=…, other "
            "kernels continue the run, with slightly different gradients."
        ) from error


def _wanted(settings: Settings) -> str:
    return kernels_name(settings.kernels.kind, settings.kernels.gradients)


def _saved(start: Start) -> str | None:
    """Return the name of the resumed run's kernels; None for a new run, or one without quantizers."""
    return start[1]["meta"].get("kernels") if start else None


def _weakest(name: str) -> str:
    """Return the kernels that the machines of all processes run: `auto` measures each, and they may differ."""
    names = gather_objects(name) or [name]
    return broadcast_object(min(names, key=lambda given: KINDS.index(parse_kernels(given)[0])))

"""Modules of the user's own, which a config names in `custom_imports`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from lbitcls.utils.errors import ConfigError
from lbitcls.utils.safe import refuse_code


def import_custom(section: dict[str, Any] | None) -> None:
    """Import the modules of a config's `custom_imports`; they may lie in the current folder, as for a Python script.

    Raises:
        ConfigError: one is not there, and is not allowed to be missing; safe mode refuses them all.
    """
    given = dict(section or {})
    names = given.get("imports") or []
    if names:
        refuse_code(f"custom_imports of {names!r:.200}")
    if names and not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # the command `lbitcls` is a script that lies elsewhere
    for name in [names] if isinstance(names, str) else names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if not given.get("allow_failed_imports"):
                raise ConfigError(
                    f"custom_imports: {name} cannot be imported: {error}. Modules are looked for in the current folder "
                    f"({Path.cwd()}), the folders of PYTHONPATH, and among the installed packages."
                ) from error

"""User modules named in a config's `custom_imports`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from lbitcls.utils.errors import ConfigError
from lbitcls.utils.safe import refuse_code


def import_custom(section: dict[str, Any] | None) -> None:
    """Import the modules of a config's `custom_imports`, also from the current folder, as for a Python script.

    Raises:
        ConfigError: A module is missing and not allowed to be; safe mode refuses them all.
    """
    given = dict(section or {})
    names = given.get("imports") or []
    if names:
        refuse_code(f"custom_imports of {names!r:.200}")
    if names and not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # Python adds the folder of the `lbitcls` script instead
    for name in [names] if isinstance(names, str) else names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if not given.get("allow_failed_imports"):
                raise ConfigError(
                    f"custom_imports: {name} cannot be imported: {error}. Modules are searched for in the current "
                    f"folder ({Path.cwd()}), the folders of PYTHONPATH, and among the installed packages."
                ) from error

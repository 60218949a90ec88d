"""Reading of a config file and its bases with mmengine, without mmengine's pitfalls.

YAML creates no Python objects, no Python runs in safe mode, a byte order mark is ignored, a syntax error names its
file, a base may be one of the package's configs, and `{{ fileDirname }}` works in a folder of any name.
"""

from __future__ import annotations

import ast
import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config as _MMEngineConfig
from mmengine.fileio import JsonHandler, YamlHandler
from mmengine.fileio.handlers.registry_utils import file_handlers

from lbitcls.utils.config_override import DELETE, is_plain
from lbitcls.utils.errors import ConfigError, shown
from lbitcls.utils.failures import explain
from lbitcls.utils.files import suggest_path
from lbitcls.utils.jsontext import json_text
from lbitcls.utils.library import CONFIG_SUFFIXES, NAME, config_library, find_shipped, nearest_config
from lbitcls.utils.safe import read_yaml, refuse_code

MARK = "\ufeff"
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_config(path: Path, **kwargs: Any) -> _MMEngineConfig:
    """Read the file `path` and its bases with mmengine; return the result with their text.

    Raises:
        ConfigError: It cannot be read, or would run code in safe mode.
    """
    check_syntax(path, ())
    try:
        with _guarded():
            loaded = _MMEngineConfig.fromfile(
                str(path),
                use_environment_variables=False,
                lazy_import=False,
                import_custom_modules=False,  # ours does it, with our search path and message
                **kwargs,
            )
    except Exception as error:  # a config is a program: the user must see whatever it raises, with its location
        if explain(error) is not None:
            raise  # our own error, or that of a full disk
        raise ConfigError(
            f"config {path} cannot be read: {type(error).__name__}: {error}{_line(error, path)}"
        ) from error
    return loaded


def existing(path: Path) -> Path:
    """Return `path`, or the library config that it names.

    Raises:
        ConfigError: There is no such config file; the message names the nearest.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; a config must be a .py, .yaml, .yml or .json file.")
    if not path.is_file():
        shipped = find_shipped(path)
        if shipped is not None:
            return shipped
        hint, ours = suggest_path(path), nearest_config(path)
        if hint == "." and ours is not None:
            hint = f". Did you mean {ours}, which comes with the package?"
        raise ConfigError(f"there is no config file {path}{hint}")
    if path.suffix not in CONFIG_SUFFIXES:
        raise ConfigError(f"a config must be a .py, .yaml, .yml or .json file; got {path}.")
    return path


def check_syntax(path: Path, children: tuple[Path, ...]) -> None:
    """Check the syntax of a Python config, and the bases of any config, since mmengine's message names no file."""
    if path in children:
        raise ConfigError(f"config {path} is its own base: {' -> '.join(map(str, (*children, path)))}.")
    for base in _bases(_parse(path), path) if path.suffix == ".py" else _plain_bases(path):
        if not base.startswith(("http:", "https:")) and "::" not in base:
            check_syntax(find_base(base, path).resolve(), (*children, path.resolve()))


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8-sig"), filename=str(path))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise ConfigError(f"config {path} is not Python: {error}" + (f" (line {line})." if line else ".")) from error


def _plain_bases(path: Path) -> list[str]:
    """Return the bases of a YAML or JSON file; none if it cannot be read, which its reader reports."""
    with contextlib.suppress(Exception):
        bases = read_yaml(path.read_text(encoding="utf-8-sig"))["_base_"]
        return [base for base in ([bases] if isinstance(bases, str) else bases) if isinstance(base, str)]
    return []


def find_base(base: str, path: Path) -> Path:
    """Return the file that the config `path` names as its base: relative to `path`, else in the package's library.

    Raises:
        ConfigError: There is no such file; the message names the places searched.
    """
    beside = path.parent / base
    found = beside if beside.is_file() else find_shipped(Path(base))
    if found is None:
        ours = Path(base).parts[:1] == (NAME,)
        places = f"{beside}, nor {config_library().parent / base} in the package's library" if ours else f"{beside}"
        near = nearest_config(Path(base)) if ours else None
        hint = f" Did you mean '{near}'?" if near else ""
        start = "there is neither" if ours else "there is no file"
        raise ConfigError(f"config {path} has the base '{base}', but {start} {places}.{hint}")
    return found


def _bases(tree: ast.Module, path: Path) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_base_":
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return []
            bases = [value] if isinstance(value, str) else value
            if not isinstance(bases, (list, tuple)) or not all(isinstance(base, str) for base in bases):
                raise ConfigError(f"config {path}: _base_ must be a path, or a list of paths; got {shown(value)}.")
            return list(bases)
    return []


class _PlainYaml(YamlHandler):
    """YAML reader without mmengine's creation of arbitrary Python objects, which runs code."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        return _sections(read_yaml(file), "YAML")


class _PlainJson(JsonHandler):
    """mmengine's JSON reader, for configs only."""

    def load_from_fileobj(self, file: Any) -> Any:
        return _sections(super().load_from_fileobj(file), "JSON")


def _sections(value: Any, kind: str) -> Any:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"a config in {kind} must have sections at its top, 'name: value'; got {shown(value)}.")
    return value


_READING = threading.RLock()


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Make mmengine read a config and all its bases safely, and find bases by `find_base`.

    YAML is read by `read_yaml`, Python is refused in safe mode, and the byte order mark that Windows editors put before
    UTF-8 is removed from mmengine's copy of each file. A dict replaces a base's plain value, such as a short form.
    """
    names = ("_file2dict", "_substitute_predefined_vars", "_get_cfg_path", "_merge_a_into_b")
    before = {name: getattr(_MMEngineConfig, name) for name in names}

    def read(filename: str, *args: Any, **kwargs: Any) -> Any:
        if str(filename).endswith(".py"):
            refuse_code(f"the Python config {filename}")
        return before["_file2dict"](filename, *args, **kwargs)

    def base_of(base: str, filename: str) -> tuple[str, str | None]:
        if "::" in base:  # another package's
            return before["_get_cfg_path"](base, filename)
        return str(find_base(base, Path(filename))), None

    def merge(new: dict[str, Any], base: Any, *args: Any) -> Any:
        replaced = {key for key, value in new.items() if isinstance(value, dict) and is_plain(base.get(key, {}))}
        marked = {key: {**value, DELETE: True} if key in replaced else value for key, value in new.items()}
        return before["_merge_a_into_b"](marked, base, *args)

    with _READING:
        handlers = {suffix: file_handlers[suffix] for suffix in ("yaml", "yml", "json")}
        file_handlers.update(yaml=_PlainYaml(), yml=_PlainYaml(), json=_PlainJson())
        _MMEngineConfig._file2dict = staticmethod(read)
        _MMEngineConfig._substitute_predefined_vars = staticmethod(_copy)
        _MMEngineConfig._get_cfg_path = staticmethod(base_of)
        _MMEngineConfig._merge_a_into_b = staticmethod(merge)
        try:
            yield
        finally:
            for name in names:
                setattr(_MMEngineConfig, name, staticmethod(before[name]))
            file_handlers.update(handlers)


def _copy(filename: str, copied: str) -> None:
    """Write a config to mmengine's copy, without a byte order mark, with the values of `{{ fileDirname }}` and others.

    mmengine inserts values as they are, so that a quote or a backslash in a folder's name breaks the config.
    """
    path = Path(filename)
    values = {
        "fileDirname": path.parent.as_posix(),
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }

    def value(found: re.Match[str]) -> str:
        text = json_text(values[found[1]], ensure_ascii=False)[1:-1]
        return text.replace("'", r"\x27").replace("{{", r"{\x7b") if path.suffix == ".py" else text

    text = path.read_text(encoding="utf-8-sig")
    Path(copied).write_text(re.sub(rf"\{{\{{\s*({'|'.join(values)})\s*\}}\}}", value, text), encoding="utf-8")


def _line(error: BaseException, path: Path) -> str:
    """Return ` (line 7)` if the config's own code raised `error`."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(path.name):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""


def numbers(value: Any, path: Path) -> Any:
    """Convert strings that are floats to floats in YAML and JSON files: YAML 1.1 reads `1e-3` as a string."""
    if path.suffix == ".py":
        return value
    if isinstance(value, dict):
        return type(value)({key: numbers(item, path) for key, item in value.items()})
    if isinstance(value, list):
        return [numbers(item, path) for item in value]
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return float(value)
    return value

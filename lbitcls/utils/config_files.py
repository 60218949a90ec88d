"""Reading a config's file, and those it inherits from, by mmengine, with its traps closed.

YAML makes no objects of Python, in safe mode no Python runs, a byte order mark is no syntax, and a syntax error names
its file.
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

from lbitcls.utils.errors import ConfigError, nearest, shown, suggest
from lbitcls.utils.failures import explain
from lbitcls.utils.library import find_shipped, nearest_config
from lbitcls.utils.safe import read_yaml, refuse_code

MARK = "\ufeff"
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_config(path: Path, **kwargs: Any) -> _MMEngineConfig:
    """What mmengine makes of the file `path` and its bases, and their text.

    Raises:
        ConfigError: it cannot be read, or would run code in safe mode.
    """
    check_syntax(path, ())
    try:
        with _guarded():
            loaded = _MMEngineConfig.fromfile(
                str(path),
                use_environment_variables=False,
                lazy_import=False,
                import_custom_modules=False,  # done by our own, with our search path and message
                **kwargs,
            )
    except Exception as error:  # a config is a program: whatever it raises is the user's to see, with its place
        if explain(error) is not None:
            raise  # our own, or a full disk's
        raise ConfigError(
            f"config {path} cannot be read: {type(error).__name__}: {error}{_line(error, path)}"
        ) from error
    return loaded


def existing(path: Path) -> Path:
    """`path`, or the config of the library that it names.

    Raises:
        ConfigError: there is no such config file; the message names the nearest.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; a config is a .py, .yaml, .yml or .json file.")
    if not path.is_file():
        shipped = find_shipped(path)
        if shipped is not None:
            return shipped
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        ours = None if nearest(path.name, siblings) else nearest_config(path)
        hint = suggest(path.name, siblings) if ours is None else f"; did you mean {ours}, which comes with the package?"
        raise ConfigError(f"there is no config file {path}{hint}")
    if path.suffix not in (".py", ".yaml", ".yml", ".json"):
        raise ConfigError(f"a config is a .py, .yaml, .yml or .json file; got {path}.")
    return path


def check_syntax(path: Path, children: tuple[Path, ...]) -> None:
    """Parse a Python config and its bases for syntax alone, since mmengine's message does not name the file."""
    if path in children:
        raise ConfigError(f"config {path} is its own base: {' -> '.join(map(str, (*children, path)))}.")
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"), filename=str(path))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise ConfigError(f"config {path} is not Python: {error}" + (f" (line {line})." if line else ".")) from error
    for base in _bases(tree, path):
        base_path = path.parent / base
        if not base.startswith(("http:", "https:")) and "::" not in base:
            if not base_path.is_file():
                raise ConfigError(f"config {path} has the base '{base}', but there is no file {base_path}.")
            check_syntax(base_path.resolve(), (*children, path.resolve()))


def _bases(tree: ast.Module, path: Path) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_base_":
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return []
            bases = [value] if isinstance(value, str) else value
            if not isinstance(bases, (list, tuple)) or not all(isinstance(base, str) for base in bases):
                raise ConfigError(f"config {path} has _base_ = {shown(value)}; it is a path, or a list of paths.")
            return list(bases)
    return []


class _PlainYaml(YamlHandler):
    """mmengine's reader of YAML makes any object of Python that the file names, which runs code; this one does not."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        return _sections(read_yaml(file), "YAML")


class _PlainJson(JsonHandler):
    """mmengine's reader of JSON, for configs alone."""

    def load_from_fileobj(self, file: Any) -> Any:
        return _sections(super().load_from_fileobj(file), "JSON")


def _sections(value: Any, kind: str) -> Any:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"a config in {kind} has sections at its top, 'name: value'; it has {shown(value)}.")
    return value


_READING = threading.RLock()


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Let mmengine read a config and all its bases safely.

    YAML is read by `read_yaml`, Python not at all in safe mode, and the byte order mark that editors on Windows put
    before UTF-8 is dropped from the copy of each file that mmengine works on.
    """
    read_file, copy = _MMEngineConfig._file2dict, _MMEngineConfig._substitute_predefined_vars

    def read(filename: str, *args: Any, **kwargs: Any) -> Any:
        if str(filename).endswith(".py"):
            refuse_code(f"the Python config {filename}")
        return read_file(filename, *args, **kwargs)

    def without_mark(filename: str, copied: str) -> None:
        copy(filename, copied)
        text = Path(copied).read_text(encoding="utf-8")
        if text.startswith(MARK):
            Path(copied).write_text(text[1:], encoding="utf-8")

    with _READING:
        handlers = {suffix: file_handlers[suffix] for suffix in ("yaml", "yml", "json")}
        file_handlers.update(yaml=_PlainYaml(), yml=_PlainYaml(), json=_PlainJson())
        _MMEngineConfig._file2dict = staticmethod(read)
        _MMEngineConfig._substitute_predefined_vars = staticmethod(without_mark)
        try:
            yield
        finally:
            _MMEngineConfig._file2dict = staticmethod(read_file)
            _MMEngineConfig._substitute_predefined_vars = staticmethod(copy)
            file_handlers.update(handlers)


def _line(error: BaseException, path: Path) -> str:
    """` (line 7)` when the config's own code raised `error`."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(path.name):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""


def numbers(value: Any, path: Path) -> Any:
    """YAML 1.1 reads `1e-3` as a string: in YAML and JSON files a string that is a float is one."""
    if path.suffix == ".py":
        return value
    if isinstance(value, dict):
        return type(value)({key: numbers(item, path) for key, item in value.items()})
    if isinstance(value, list):
        return [numbers(item, path) for item in value]
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return float(value)
    return value

"""The package's logger: standard output, and a file in the work directory; rank 0 alone speaks."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from lbitcls.utils.errors import ConfigError, suggest

NAME = "lbitcls"
_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
T = TypeVar("T")


class _Failing(logging.Handler):
    """A handler that says once, on standard error, that it cannot write; the run goes on without its lines."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            with contextlib.suppress(OSError, ValueError):
                print(f"{self.target()} cannot be written: {error.strerror}; going on without it.", file=sys.stderr)

    def target(self) -> str:
        """What it writes to."""
        raise NotImplementedError


class LogFileHandler(_Failing, logging.FileHandler):
    """Writes to the log file."""

    def target(self) -> str:
        return f"the log {self.baseFilename}"


class StdoutHandler(_Failing, logging.StreamHandler):
    """Writes to whatever `sys.stdout` is at that moment, so that a progress bar can put lines above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    def target(self) -> str:
        return "standard output"

    def handleError(self, record: logging.LogRecord) -> None:
        super().handleError(record)
        if self._said:  # what else is printed, and is still in the buffer, would fail too, at the latest at the exit
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    @property
    def stream(self) -> TextIO:
        return sys.stdout


def get_logger() -> logging.Logger:
    """The package's logger, as `setup_logger` left it."""
    return logging.getLogger(NAME)


def setup_logger(level: str | int = "INFO", log_file: Path | None = None, rank: int = 0) -> logging.Logger:
    """Send the package's log to standard output and to `log_file`; ranks other than 0 only report errors.

    Raises:
        ConfigError: `level` is no level of `logging`.
    """
    name = logging.getLevelName(level) if isinstance(level, int) else str(level).upper()
    if name not in _LEVELS:
        raise ConfigError(f"log_level '{level}' is unknown{suggest(name, _LEVELS)} Known: {', '.join(_LEVELS)}.")
    logger = get_logger()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # of a full disk, which was told of
            handler.close()
    handlers: list[logging.Handler] = [StdoutHandler()]
    if log_file is not None and rank == 0:
        handlers.append(LogFileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)
    logger.setLevel(name if rank == 0 else "ERROR")
    logger.propagate = False
    return logger


def log_to_file(level: str, message: str) -> None:
    """Log to the log file alone, where there is one: what standard error says already."""
    logger = get_logger()
    record = logger.makeRecord(NAME, logging.getLevelName(level), "", 0, message, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def interactive() -> bool:
    """Whether a person watches: standard output is a terminal."""
    return sys.stdout.isatty()


def track(items: Iterable[T], total: int, description: str, shown: bool = True) -> Iterator[T]:
    """Pass `items` on, with a progress bar when standard output is a terminal and `shown` is true."""
    if not (shown and interactive()):
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(items, total=total, description=description)


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a small table to standard output; a cell's text is taken as it is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)

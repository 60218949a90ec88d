"""Logger of the package, to standard output and a file in the work directory; only rank 0 reports.

The file gets every line; standard output gets plain messages without the lines marked `DETAIL`, and in addition those
marked `DISPLAY`: `logger.info("…", extra=DETAIL)`. A verbose logger shows all of them, in the file's format. A line
marked `ONCE` appears once on standard output, though a command trains, exports and tests, each with its own set-up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

from lbitcls.utils.errors import ConfigError, suggest, visible

NAME = "lbitcls"
_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
T = TypeVar("T")
DETAIL: Final = {"audience": "file"}
"""`extra` of a line for the log file: a dump, or what the terminal shows in another form."""
DISPLAY: Final = {"audience": "terminal"}
"""`extra` of a line for the terminal: what the log file contains in another form."""
ONCE: Final = {"once": True}
"""`extra` of a line about the machine or the model that every step of a command would repeat."""


class _Failing(logging.Handler):
    """Handler that reports once, on standard error, that it cannot write; the run goes on without its lines."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            with contextlib.suppress(OSError, ValueError):
                print(f"{self.target()} cannot be written: {error.strerror}; continuing without it.", file=sys.stderr)

    def target(self) -> str:
        """Return a description of the destination."""
        raise NotImplementedError


class _Visible(logging.Formatter):
    """Format of which no name in a message can control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _Plain(_Visible):
    """Format of the terminal: the message, after its level from WARNING on; long lines are wrapped at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno > logging.INFO:
            text = f"{record.levelname}: {text}"
        return "\n".join(_wrapped(line) for line in text.splitlines()) if interactive() else text


def _wrapped(line: str) -> str:
    if len(line) < terminal_width():
        return line
    return textwrap.fill(line, terminal_width() - 1, break_long_words=False, break_on_hyphens=False)


class LogFileHandler(_Failing, logging.FileHandler):
    """Handler for the log file."""

    def target(self) -> str:
        return f"the log {self.baseFilename}"


class StdoutHandler(_Failing, logging.StreamHandler):
    """Handler for the current `sys.stdout`, so that a progress bar can put lines above itself.

    Args:
        verbose: True: all lines, in the format of the log file.
        shown: Lines marked `ONCE` that earlier handlers of this command showed.
    """

    def __init__(self, verbose: bool = False, shown: Iterable[str] = ()) -> None:
        logging.Handler.__init__(self)
        self.shown = set(shown)
        self.setFormatter(_Visible(_FORMAT) if verbose else _Plain())
        if not verbose:
            self.addFilter(lambda record: _audience(record) != "file")
            self.addFilter(self._is_news)

    def _is_news(self, record: logging.LogRecord) -> bool:
        """Return False for a line marked `ONCE` that was shown before."""
        if not getattr(record, "once", False):
            return True
        line = record.getMessage()
        news = line not in self.shown
        self.shown.add(line)
        return news

    def target(self) -> str:
        return "standard output"

    def handleError(self, record: logging.LogRecord) -> None:
        super().handleError(record)
        if self._said:  # other output still in the buffer would fail too, at the latest at exit
            discard_output()

    @property
    def stream(self) -> TextIO:
        return sys.stdout


def _audience(record: logging.LogRecord) -> str | None:
    """Return `'file'` or `'terminal'` if a line is for one of them only."""
    found: str | None = getattr(record, "audience", None)
    return found


def get_logger() -> logging.Logger:
    """Return the package's logger in its current configuration."""
    return logging.getLogger(NAME)


def setup_logger(
    level: str | int = "INFO", log_file: Path | None = None, rank: int = 0, verbose: bool = False
) -> logging.Logger:
    """Send the package's log to standard output and to `log_file`; ranks other than 0 report only errors.

    `verbose`, or the level DEBUG, sends the lines for the file to standard output too.

    Raises:
        ConfigError: `level` is not a level of `logging`.
    """
    name = logging.getLevelName(level) if isinstance(level, int) else str(level).upper()
    if name not in _LEVELS:
        raise ConfigError(f"log_level '{level}' is unknown{suggest(name, _LEVELS)} Known: {', '.join(_LEVELS)}.")
    logger = get_logger()
    shown = {line for handler in logger.handlers if isinstance(handler, StdoutHandler) for line in handler.shown}
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk's error, already reported
            handler.close()
    logger.addHandler(StdoutHandler(verbose or name == "DEBUG", shown))
    if log_file is not None and rank == 0:
        file = LogFileHandler(log_file, encoding="utf-8")
        file.setFormatter(logging.Formatter(_FORMAT))
        file.addFilter(lambda record: _audience(record) != "terminal")
        logger.addHandler(file)
    logger.setLevel(name if rank == 0 else "ERROR")
    logger.propagate = False
    return logger


def log_to_file(level: str, message: str) -> None:
    """Log to the log file alone, if there is one, for messages that standard error shows already."""
    logger = get_logger()
    record = logger.makeRecord(NAME, logging.getLevelName(level), "", 0, message, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def discard_output() -> None:
    """Discard what is written to standard output from now on, and what its buffer holds."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interactive() -> bool:
    """Return True if standard output is a terminal."""
    return sys.stdout.isatty()


def terminal_width() -> int:
    """Return the number of columns of the terminal (or the variable `COLUMNS`); at least 40."""
    return max(40, shutil.get_terminal_size().columns)


def track(items: Iterable[T], total: int, description: str, shown: bool = True) -> Iterator[T]:
    """Yield `items`, with a progress bar if standard output is a terminal and `shown` is true."""
    if not (shown and interactive()):
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(items, total=total, description=description)


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a small table to standard output; cell texts are printed literally."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = list(columns)
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(str(cell))) for cell in row))
    Console().print(table)

"""Logger: standard output and a file, rank 0 only; tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lbitcls.utils.errors import ConfigError, DataError
from lbitcls.utils.logging import ONCE, get_logger, print_table, setup_logger, track


@pytest.fixture(scope="module")
def left_over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log file opened by a module's fixture, as by a command that it runs."""
    path = tmp_path_factory.mktemp("left_over") / "x.log"
    setup_logger("ERROR", path)
    return path


@pytest.mark.parametrize("order", ["first", "second"])
def test_no_test_hears_what_another_set_up(left_over: Path, order: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = get_logger()
    assert (logger.level, logger.propagate, logger.handlers) == (0, True, [])
    logger.warning(order)
    assert caplog.messages == [order] and left_over.read_text() == ""
    setup_logger("ERROR")


def test_to_output_and_file(tmp_path: Path, capsys: Any) -> None:
    setup_logger("INFO", tmp_path / "x.log").info("hello")
    setup_logger("WARNING", tmp_path / "y.log").info("not shown")
    assert capsys.readouterr().out == "hello\n"
    assert "lbitcls - INFO - hello" in (tmp_path / "x.log").read_text()
    assert (tmp_path / "y.log").read_text() == ""


def test_other_ranks_only_report_errors(tmp_path: Path, capsys: Any) -> None:
    logger = setup_logger("DEBUG", tmp_path / "x.log", rank=1)
    logger.warning("quiet")
    logger.error("loud")
    assert not (tmp_path / "x.log").exists()
    output = capsys.readouterr().out
    assert "loud" in output and "quiet" not in output


def test_a_command_says_once_what_each_of_its_steps_would_repeat(tmp_path: Path, capsys: Any) -> None:
    for name in ("train.log", "export.log"):
        logger = setup_logger(log_file=tmp_path / name)
        for line in ("No %s.", "No %s.", "Other."):
            logger.info(*((line, "GPU") if "%" in line else (line,)), extra=ONCE)
        logger.info("Epoch")
    assert capsys.readouterr().out.split("\n") == ["No GPU.", "Other.", "Epoch", "Epoch", ""]
    assert (tmp_path / "export.log").read_text(encoding="utf-8").count("No GPU.") == 2


def test_no_name_controls_the_terminal(tmp_path: Path, capsys: Any) -> None:
    odd = "\x1b[2J\x9b\u202e.png"
    for verbose in (False, True):
        setup_logger(log_file=tmp_path / "log", verbose=verbose).warning("%s is odd", odd)
    print_table("names", ["name"], [[odd]])
    shown = capsys.readouterr().out
    assert shown.count(r"\x1b[2J\x9b\u202e.png") == 3 and "\x1b" not in shown
    assert str(DataError(f"{odd}:\n\tcut off")) == "\\x1b[2J\\x9b\\u202e.png:\n\tcut off"


def test_unknown_level() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'INFO'"):
        setup_logger("INF")


def test_table_and_no_progress_bar_in_a_pipe(capsys: Any) -> None:
    print_table("Title", ("a", "b"), [("x", 1), ("[red]y", 2.5)])
    assert list(track([1, 2], 2, "working")) == [1, 2]
    output = capsys.readouterr().out
    assert "[red]y" in output and "working" not in output

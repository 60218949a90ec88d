"""Any mutated value of a config, at any depth, ends in a named error or trains: no traceback, no hang, no file."""

from __future__ import annotations

import copy
import os
import random
import re
import resource
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mutations import CONFIGS, arguments_by_type, mutate

from lbitcls.utils.config import Config, check_sections
from lbitcls.utils.errors import ConfigError, LbitclsError
from lbitcls.workflows.checking import check_config

CASES = int(os.environ.get("LBITCLS_FUZZ", "300"))
SEED = int(os.environ.get("LBITCLS_FUZZ_SEED", "0"))
SECONDS = 10  # for a case
MEMORY = 6 * 2**30  # for all allocations, beside what is held before


class Hang(BaseException):
    """A case took too long."""


def stop(number: int, frame: Any) -> None:
    raise Hang(f"no end after {SECONDS} s")


@contextmanager
def limits() -> Iterator[None]:
    """An alarm for this case, and a limit for its memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(config: dict[str, Any]) -> str:
    """What becomes of a config: empty where it trains or its error is named."""
    try:
        with limits():
            cfg = Config(config)
            check_sections(cfg)
            check_config(cfg)
    except LbitclsError as error:
        return "" if str(error).strip() else f"{type(error).__name__} without a message"
    except (Exception, Hang) as error:
        places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        own = [place for place in places if "/lbitcls/" in place]
        return f"{type(error).__name__}: {error} at {own[-1] if own else ''} ({places[-1]})"
    return ""


@pytest.mark.slow
@pytest.mark.timeout(60 + 3 * CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_config_ends_in_a_named_error_or_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, failed = arguments_by_type(), []
    for case in range(CASES):
        draw = random.Random(SEED * 1_000_000 + case)
        name = draw.choice(list(CONFIGS))
        config = copy.deepcopy(CONFIGS[name])
        done = "; ".join(mutate(config, draw, arguments) for _ in range(draw.choice((1, 1, 1, 2))))
        if told := outcome(config):
            failed.append(f"case {case} ({name}) {done}\n    {told}")
        capsys.readouterr()
    assert not failed, f"{len(failed)} of {CASES}:\n" + "\n".join(failed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_themselves_train(name: str) -> None:
    check_config(Config(copy.deepcopy(CONFIGS[name])))


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("float", "data.train.data_root", 1, "data_root must be a folder, '…', or a list of them; got 1."),
        ("float", "data.train.data_root", ["a", 2], "data_root must be a folder"),
        (
            "DoReFa",
            "data.train.pipeline.3.num_ops",
            10**400,
            "num_ops must be an integer from 1 to 100; got",
        ),
        (
            "DoReFa",
            "data.train.pipeline.3.magnitude",
            31,
            "magnitude must be an integer from 0 to 30; got 31.",
        ),
        ("features", "optimizer.betas", [], "optimizer: AdamW rejects its settings"),
    ],
)
def test_what_ended_in_a_traceback_once_is_named(name: str, place: str, value: Any, message: str) -> None:
    cfg = Config(copy.deepcopy(CONFIGS[name]))
    cfg.merge_from_dict({f"+{place}": value})
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_config(cfg)


def dicts_in(value: Any, place: str = "") -> Iterator[str]:
    """The dotted keys of the dicts in a config."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    if isinstance(value, dict) and place:
        yield place
    for key, part in items:
        yield from dicts_in(part, f"{place}.{key}" if place else str(key))


@pytest.mark.parametrize("name", ["features", "hooks"])
def test_no_dict_of_a_config_accepts_a_key_that_nothing_reads(name: str) -> None:
    places = list(dicts_in(CONFIGS[name]))
    assert len(places) > 20
    for place in places:
        cfg = Config(copy.deepcopy(CONFIGS[name]))
        cfg.merge_from_dict({f"+{place}.unread": 1})
        with pytest.raises(LbitclsError, match="unread"):
            check_config(cfg)

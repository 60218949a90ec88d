"""Trains a config once for each combination of option values: `lbitcls sweep`.

Each run is a process of its own, `lbitcls train --resume`, in a folder named after its values. So a sweep resumes as
its runs do: the same command again skips the complete ones and resumes the others.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import IO

from lbitcls.settings.sections import read_settings
from lbitcls.tracking.run_reading import read_row
from lbitcls.tracking.run_table import RunTable
from lbitcls.utils.config import Config, parse_option
from lbitcls.utils.errors import ConfigError, LbitclsError, TrainingError, visible
from lbitcls.utils.files import check_folder, read_lines, write_whole
from lbitcls.utils.jsontext import json_text
from lbitcls.workflows.analyzing import compare_runs

SWEEP, OUTPUT, TABLE = "sweep.json", "output.txt", "results.csv"
_MOST_RUNS = 1000
_PAUSE = 0.1  # seconds between two looks at the processes
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


@dataclass(frozen=True)
class Trial:
    """Run of a sweep.

    Attributes:
        folder: Work directory.
        options: Its `key=value` options.
    """

    folder: Path
    options: tuple[str, ...]


def sweep(
    config: str | Path,
    options: Sequence[str],
    *,
    work_dir: str | Path | None = None,
    jobs: int = 1,
    data_root: str | None = None,
) -> RunTable:
    """Train a config once for each combination of values, and print the table of its runs.

    Writes the table to `results.csv` in the sweep's folder, and what each run prints to `output.txt` in the run's.

    Args:
        config: Config file.
        options: Options `key=value1,value2,…`; one with a single value applies to all runs. A list is one value:
            `key=[1,2],[3,4]`.
        work_dir: Folder of the sweep; None: `work_dirs/NAME_sweep`.
        jobs: Number of runs that train at the same time, at least 1.
        data_root: Folder to search for relative data paths.

    Raises:
        ConfigError: A combination is not a valid config, none of the options has several values, or the folder contains
            a sweep of another config, or a run of the same name with other options.
        TrainingError: Some runs failed; the others are complete, and the table is printed.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be an integer ≥ 1; got {jobs}.")
    folder = check_folder(work_dir or Path("work_dirs", f"{Path(config).stem}_sweep"), "--work-dir")
    trials = plan_trials(options, folder)
    for trial in trials:
        _check(config, trial)
    _claim(folder, config, trials)
    failed = _train(config, trials, jobs, data_root)
    known = [trial.folder for trial in trials if (trial.folder / "log.jsonl").exists()]
    table = compare_runs(known) if known else RunTable([])
    if known:
        print(table.to_text())
        write_whole(folder / TABLE, lambda path: path.write_text(table.to_csv(), encoding="utf-8"))
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(trials)} runs failed: {', '.join(trial.folder.name for trial in failed)}; "
            f"{OUTPUT} in the folder of each tells why. The same command again trains what is missing."
        )
    return table


def plan_trials(options: Sequence[str], folder: Path) -> list[Trial]:
    """Return the runs of a sweep: the last option varies first.

    Example:
        >>> [trial.folder.name for trial in plan_trials(["optimizer.lr=0.1,0.2", "seed=1"], Path("x"))]
        ['lr=0.1', 'lr=0.2']
    """
    choices = [[f"{key}={value}" for value in _values(key, text)] for key, text in map(_split_option, options)]
    varied = [position for position, texts in enumerate(choices) if len(texts) > 1]
    keys = [_split_option(texts[0])[0] for texts in choices]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"an option is given twice: {', '.join(keys)}; list all of its values after one key.")
    if not varied:
        raise ConfigError("a sweep needs an option with several values, such as --options optimizer.lr=0.01,0.1")
    short = [key.lstrip("+").rpartition(".")[2] for key in keys]
    labels = [key if short.count(name) > 1 else name for key, name in zip(keys, short, strict=True)]
    if (number := prod(map(len, choices))) > _MOST_RUNS:
        raise ConfigError(f"the options make {number:,} runs; a sweep has at most {_MOST_RUNS:,}. Give fewer values.")
    trials = []
    for chosen in product(*choices):
        parts = [f"{labels[at]}={_split_option(chosen[at])[1]}" for at in varied]
        name = re.sub(r"[^\w.=+-]+", "-", "_".join(parts)).strip("-.")[:200]
        trials.append(Trial(folder / name, chosen))
    named: dict[Path, Trial] = {}
    for trial in trials:
        if (other := named.setdefault(trial.folder, trial)) is not trial:
            pair = f"{' '.join(other.options)} and {' '.join(trial.options)}"
            raise ConfigError(
                f"two runs would have one folder, {trial.folder.name}: {pair}; write the values otherwise."
            )
    return trials


def _split_option(text: str) -> tuple[str, str]:
    parse_option(text)  # raises for another form
    key, _, value = text.partition("=")
    return key, value


def _values(key: str, text: str) -> list[str]:
    """Return the values in a list at commas that are not in brackets or quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for at, sign in enumerate(text):
        if quote or sign in "'\"":
            quote = "" if sign == quote else quote or sign
        elif sign in _BRACKETS:
            depth += _BRACKETS[sign]
        elif sign == "," and not depth:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    if not all(parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"--options {key}={text}: a value is empty, or given twice.")
    return parts


def _check(config: str | Path, trial: Trial) -> None:
    """Raise `ConfigError` for a combination that training would refuse."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(map(parse_option, trial.options)))
    try:
        read_settings(cfg).require(("model", "data", "optimizer", "total_epochs"), "training")
    except ConfigError as error:
        raise ConfigError(f"{trial.folder.name}: {error}") from error


def _claim(folder: Path, config: str | Path, trials: Sequence[Trial]) -> None:
    """Note the sweep's config and options in its folder, after a check that its runs have no others."""
    path, text = folder / SWEEP, Config.fromfile(config).pretty_text
    known: dict[str, list[str]] = {}
    if path.exists():
        noted, known = _read_claim(path)
        remedy = "name a new folder with --work-dir, or delete it."
        if noted != text:
            raise ConfigError(
                f"{folder} contains a sweep of another config, or of an earlier state of {config}; {remedy}"
            )
        for trial in trials:
            before = known.get(trial.folder.name, trial.options)
            if sorted(before) != sorted(trial.options):
                raise ConfigError(f"{trial.folder} has other options, {' '.join(before)}; {remedy}")
    record = {"config": text, "runs": {**known, **{trial.folder.name: list(trial.options) for trial in trials}}}
    write_whole(path, lambda temporary: temporary.write_text(json_text(record, indent=2) + "\n", encoding="utf-8"))


def _read_claim(path: Path) -> tuple[str | None, dict[str, list[str]]]:
    """Return the config that a sweep noted, and the options of its runs by name; None if the file is damaged."""
    try:
        content = json.loads("\n".join(read_lines(path)))
        return content["config"], {name: list(map(str, options)) for name, options in content["runs"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, {}


def _train(config: str | Path, trials: Sequence[Trial], jobs: int, data_root: str | None) -> list[Trial]:
    """Train what is not complete, at most `jobs` at a time; return the runs that failed."""
    waiting = [trial for trial in trials if not _is_complete(trial.folder)]
    print(f"{len(trials)} runs, {len(trials) - len(waiting)} of them complete.")
    running: dict[Trial, subprocess.Popen[bytes]] = {}
    failed: list[Trial] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop(0)
                running[trial] = _start(config, trial, data_root)
            for trial in [trial for trial, process in running.items() if process.poll() is not None]:
                code = running.pop(trial).returncode
                failed += [trial] if code else []
                print(f"{trial.folder.name}: {_told(trial, code)}", flush=True)
            time.sleep(_PAUSE if running else 0)
    finally:  # Ctrl+C, SIGTERM: the runs save and stop
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def _start(config: str | Path, trial: Trial, data_root: str | None) -> subprocess.Popen[bytes]:
    trial.folder.mkdir(parents=True, exist_ok=True)
    root = ["--data-root", data_root] if data_root else []
    command = [sys.executable, "-m", "lbitcls.commands.main", "train", str(config), "--work-dir", str(trial.folder)]
    output: IO[bytes]
    with (trial.folder / OUTPUT).open("ab") as output:
        words = [*command, "--resume", *root, "--options", *trial.options]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def _is_complete(folder: Path) -> bool:
    try:
        return folder.is_dir() and read_row(folder).complete
    except LbitclsError:
        return False


def _told(trial: Trial, code: int) -> str:
    """Return the result of a run that ended, in a few words."""
    if code:
        return f"failed with exit code {code}: {next(_last_lines(trial.folder / OUTPUT), 'no output')}"
    row = read_row(trial.folder)
    best = row.quantized_top1 if row.quantized_top1 is not None else row.float_top1
    return row.state if best is None else f"{row.state}, top-1 {best:.2f} %"


def _last_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file that are not empty, from its end."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    return (visible(line.strip()) for line in reversed(text.splitlines()) if line.strip())

"""Rows of a results page: each is one training of a config, resumable, with its log kept beside the page."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        config: File below `configs/`.
        options: What the row's command changes in it.
        final: Read the test set, once, after the last epoch.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    final: bool = True

    @property
    def changes(self) -> list[str]:
        """Arguments of `--options`."""
        return [f"{key}={value}" for key, value in self.options.items()]


def lbitcls(*arguments: str, work: Path) -> None:
    """Run a command of lbitcls in the folder `work`; an error ends the script."""
    command = [sys.executable, "-m", "lbitcls.commands.main", *arguments]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": paths}, check=False)
    if done.returncode:
        raise SystemExit(f"lbitcls {' '.join(arguments[:2])} ended with exit code {done.returncode}; run it again.")


def run_script(
    doc: str | None,
    rows: Mapping[str, Row],
    page: Callable[[Results], str],
    name: str,
    prepare: Callable[[Path, Path], None] | None = None,
) -> None:
    """Read the command line, and train the wanted rows.

    Args:
        doc: Description of the script.
        rows: All rows by name.
        page: Makes the document for completed rows.
        name: Name of the page in `docs/results` and of the work folder.
        prepare: Called before the first row, with the work folder and the folder of the data.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=list(rows), default=list(rows), metavar="ROW")
    parser.add_argument("--work-root", type=Path, default=ROOT / "work_dirs" / name)
    parser.add_argument("--out", type=Path, default=ROOT / f"docs/results/{name}.md")
    args = parser.parse_args()
    work, data_root = args.work_root.resolve(), args.data_root.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if prepare is not None:
        prepare(work, data_root)
    train_rows(rows, args.rows, work, data_root, args.out, page)


def train_rows(
    rows: Mapping[str, Row],
    wanted: Iterable[str],
    work: Path,
    data_root: Path,
    out: Path,
    page: Callable[[Results], str],
) -> None:
    """Write the page, train the wanted rows that are not completed, and write it again after each.

    Results are in the `.jsonl` file beside the page `out`, logs in the folder of its name.
    """
    file = out.with_suffix(".jsonl")
    out.write_text(page(recorded(file)))
    for name in wanted:
        if name not in recorded(file):
            result = run_row(name, rows[name], work, data_root)
            keep_log(name, work, out)
            with file.open("a") as lines:
                lines.write(json.dumps(result) + "\n")
            out.write_text(page(recorded(file)))


def run_row(name: str, row: Row, work: Path, data_root: Path) -> dict[str, Any]:
    """Train or resume a row, test it, and return its results."""
    folder, config = work / "work_dirs" / name, str(ROOT / "configs" / row.config)
    began = time.monotonic()
    options = ["--options", *row.changes] if row.options else []
    lbitcls("train", config, "--resume", "--work-dir", str(folder), "--data-root", str(data_root), *options, work=work)
    clock = folder / "seconds"
    clock.write_text(str((float(clock.read_text()) if clock.exists() else 0.0) + time.monotonic() - began))
    result = _trained(name, folder)
    return {**result, **_tested(folder, data_root, work)} if row.final else result


def _trained(name: str, folder: Path) -> dict[str, Any]:
    import torch

    from lbitcls.deploy.runtime.benchmark import cpu_name

    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [record for record in records if record["mode"] == "val"][-1]
    minutes = float((folder / "seconds").read_text()) / 60
    made = {"torch": torch.__version__, "machine": f"{cpu_name()}, {os.cpu_count()} cores"}
    return {"row": name, "epochs": last["epoch"], "held-out": last["top-1"], "minutes": round(minutes, 1), **made}


def _tested(folder: Path, data_root: Path, work: Path) -> dict[str, Any]:
    """Return top-1 on the test set after the last epoch, and which images are right, as hexadecimal bits."""
    file, weights = folder / "test.npz", folder / "latest.pth"
    lbitcls("test", str(weights), "--predictions", str(file), "--data-root", str(data_root), work=work)
    found = np.load(file)
    right = found["labels"] == found["predictions"]
    return {"test": round(100 * float(right.mean()), 2), "right": np.packbits(right).tobytes().hex()}


def keep_log(name: str, work: Path, page: Path) -> None:
    """Keep a row's log, compressed, in the folder named after the page."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    log = (work / "work_dirs" / name / "log.jsonl").read_bytes()
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(log, mtime=0))


def recorded(file: Path) -> Results:
    """Return the completed rows in `file`, one JSON line each, by name."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {entry["row"]: entry for entry in map(json.loads, lines)}


def paired(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the mean difference of test top-1 in points, and its standard error over the images."""
    difference = np.mean([_right(mine) - _right(other) for mine, other in zip(ours, theirs, strict=True)], axis=0)
    return 100 * float(difference.mean()), 100 * float(difference.std(ddof=1)) / len(difference) ** 0.5


def _right(result: dict[str, Any]) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(result["right"]), np.uint8)).astype(float)


def wrapped(text: str) -> list[str]:
    """Return a paragraph as lines of the pages' width."""
    return textwrap.wrap(text.strip(), 118, break_on_hyphens=False)


def rows_table(rows: Mapping[str, Row], results: Results) -> list[str]:
    """Return a section with a line per completed row: its config and options, its length, and its top-1."""
    lines = [
        "## Rows",
        "",
        "| row | config, options | epochs | minutes | held-out | test |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if name in results:
            found = results[name]
            command = " ".join([f"`{row.config}`", *(f"`{option}`" for option in row.changes)])
            test = f"{found['test']:.2f}" if row.final else "–"
            cells = [f"`{name}`", command, str(found["epochs"]), f"{found['minutes']:.0f}", f"{found['held-out']:.2f}"]
            lines.append(f"| {' | '.join([*cells, test])} |")
    made = sorted({f"torch {found['torch']} on {found['machine']}" for found in results.values()})
    times = "The rows trained on one thread beside other work: the minutes do not measure speed."
    return [*lines, "", f"Machines: {'; '.join(made)}. {times}"]

"""Write the results of each method into docs/methods.md, from docs/results/cifar10_short.jsonl.

    python docs/method_tables.py

Each table stands between `<!-- results: METHOD -->` and `<!-- end of results -->`. The rest is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "methods.md"
RESULTS = DOCS / "results" / "cifar10_short.jsonl"
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
HEAD = "| ResNet-20, CIFAR-10 | epochs | top-1 (%) | gap to float |\n|---|---|---|---|\n"


def results() -> dict[str, dict[str, Any]]:
    """Return the measured rows by name: `float`, `METHOD-BITS` and `METHOD-BITS-short`; none that compare gradients."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    rows = {row["row"]: row for row in map(json.loads, lines)}
    return {name: row for name, row in rows.items() if re.fullmatch(r"float|\w+-\d(-short)?", name)}


def table(method: str) -> str:
    """Return the table of a method in Markdown, most bits and most epochs first."""
    measured = results()
    rows = [(name.split("-")[1], row) for name, row in measured.items() if name.split("-")[0] == method]
    best = measured["float"]["top-1"]
    text = f"{HEAD}| float | {measured['float']['epochs']} | {best:.2f} | |\n"
    if not rows:
        text += "| no row yet | | | |\n"
    for bits, row in sorted(rows, key=lambda pair: (pair[0], pair[1]["epochs"]), reverse=True):
        text += f"| W{bits}A{bits} | {row['epochs']} | {row['top-1']:.2f} | {row['top-1'] - best:+.2f} |\n"
    return text


def written(text: str) -> str:
    """Return a page with its tables as the results have them."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{table(match[2])}\n{match[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""Time until a command's help is printed, against `import torch`: the help must not wait for heavy imports.

    python benchmarks/startup.py [--rounds 7] [--json F]

Fresh processes take turns; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[1] / "tools/train.py"
COMMANDS = {"help": [sys.executable, str(TRAIN), "--help"], "torch": [sys.executable, "-c", "import torch"]}


def seconds(command: list[str]) -> float:
    """Return the wall-clock time of a command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="JSON file to write the result to")
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    result = {name: statistics.median(values) for name, values in times.items()}
    result["ratio"] = result["help"] / result["torch"]
    seconds_of = {name: f"{result[name]:.2f} s" for name in COMMANDS}
    print(
        f"tools/train.py --help {seconds_of['help']}, import torch {seconds_of['torch']}, ratio {result['ratio']:.3f}"
    )
    if args.json:
        args.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()

"""Transfer learning to ants and bees: every recipe of configs/transfer; the table is docs/results/transfer.md.

    python benchmarks/transfer.py --data-root FOLDER [--rows mobilenet_v2_finetune …] [--seeds 0]
    python benchmarks/transfer.py --data-root FOLDER --times
    python benchmarks/transfer.py --data-root FOLDER --compare squeezenet1_1 [--seeds 0 1 2 3]
    python benchmarks/transfer.py --data-root FOLDER --search mobilenet_v2_finetune --options optimizer.lr=0.003

`FOLDER` contains `hymenoptera_256.tar.gz` (or the folder) and `weights`. MobileNetV2 trains with seeds 0, 1 and 2,
SqueezeNet with seed 0; a tutorial's own recipe (`…_tutorial_…`) with seed 0. A quantized row is initialized from the
fine-tuned float row of its seed, a tutorial's from ImageNet weights; it is then exported and tested on `val`.
Completed rows (with a line in the `.jsonl` file next to the table) are not trained again, and interrupted ones
resume, so the command may be stopped and started at any time.

`--search` trains a recipe, with its own options, on four fifths of the training images and tests it on the rest:
settings were compared this way (a quantized recipe is initialized from its float recipe, trained likewise). Its results
go to `transfer_search.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transfer_features

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs/transfer"
WORK = ROOT / "work_dirs/transfer"
SEEDS = {"mobilenet_v2": (0, 1, 2), "squeezenet1_1": (0,)}
NAMES = {"mobilenet_v2": "MobileNetV2", "squeezenet1_1": "SqueezeNet 1.1"}
TIMED, QUANTIZED = ("features", "int8_features"), ("qat", "lsq_4w4f")
RECIPES = ("features", "int8_features", "finetune", *QUANTIZED)
TUTORIAL = tuple(f"tutorial_{recipe}" for recipe in ("features", "int8_features", "finetune", "qat", "cifar10"))
EXPORTED = (*QUANTIZED, "tutorial_qat")
ROWS = {f"{backbone}_{recipe}": (backbone, recipe) for recipe in (*RECIPES, *TUTORIAL) for backbone in SEEDS}
VAL_IMAGES, TEST_IMAGES = 153, 10_000
TRAIN_IMAGES, EVERY = 244, 5
HELD_OUT = range(EVERY - 1, TRAIN_IMAGES, EVERY)
Entry = dict[str, Any]


def run_tool(name: str, *arguments: Any) -> None:
    """Run one of `tools/` in a new process; exit if it fails."""
    done = subprocess.run([sys.executable, str(ROOT / f"tools/{name}.py"), *map(str, arguments)], check=False)
    if done.returncode:
        raise SystemExit(f"tools/{name}.py ended with exit code {done.returncode}; run the command again to resume it.")


def train(config: Path, folder: Path, data_root: Path, *arguments: Any, options: Sequence[str] = ()) -> None:
    """Train or resume a run; its total processor time is kept in the file `seconds` of its folder."""
    began = processor_seconds()
    common = ("--work-dir", folder, "--data-root", data_root, "--resume")
    shorter = ("num_threads=1", "log_config.pictures=False", "checkpoint_config.max_keep_ckpts=1")
    try:
        run_tool("train", config, *common, *arguments, "--options", *shorter, "evaluation.interval=5", *options)
    finally:
        clock = folder / "seconds"
        if folder.exists():
            clock.write_text(str(spent(folder) + processor_seconds() - began))


def processor_seconds() -> float:
    """Return the processor time of all child processes so far; on a shared machine, wall-clock time says little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def config_of(row: str) -> Path:
    """Return the config of a row; the tutorials' configs have a separate folder."""
    return CONFIGS / ("tutorial" if ROWS[row][1] in TUTORIAL else "") / f"{row}.py"


def seeds_of(row: str) -> tuple[int, ...]:
    """Return the seeds that a row is trained with."""
    backbone, recipe = ROWS[row]
    return (0,) if recipe in TUTORIAL else SEEDS[backbone]


def spent(folder: Path) -> float:
    """Return the processor seconds that a run has taken so far."""
    clock = folder / "seconds"
    return float(clock.read_text()) if clock.exists() else 0.0


def validations(folder: Path) -> list[Entry]:
    """Return the validation records in a run's log."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["mode"] == "val"]


def search(recipe: str, options: list[str], seed: int, data_root: Path) -> Entry:
    """Train a recipe with options on four of every five training images, and test it on the fifth.

    A quantized recipe is initialized from the float recipe, trained on the same images first.
    """
    folder = search_folder(recipe, options, seed)
    start: tuple[Any, ...] = ()
    backbone, kind = ROWS[recipe]
    if kind in QUANTIZED:
        search(f"{backbone}_finetune", [], seed, data_root)
        start = ("--load-from", search_folder(f"{backbone}_finetune", [], seed) / "latest.pth")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.py"
    learned = [i for i in range(TRAIN_IMAGES) if i not in HELD_OUT]
    config.write_text(
        f"_base_ = {str(config_of(recipe))!r}\n"
        f"data = dict(train=dict(indices={learned!r}), val=dict(split='train', indices={list(HELD_OUT)!r}))\n"
    )
    if not (folder / "summary.json").exists():
        train(config, folder, data_root, "--seed", seed, *start, options=options)
    last = validations(folder)[-1]
    return {"row": recipe, "options": options, "seed": seed, "top-1": last["top-1"], "loss": last["loss"]}


def search_folder(recipe: str, options: Sequence[str], seed: int) -> Path:
    """Return the folder of a search run."""
    return WORK / "search" / "_".join([recipe, *options, f"seed={seed}"]).replace("/", "_")


def measure(row: str, seed: int, data_root: Path) -> Entry:
    """Train a row with a seed, export it if quantized, and return its results after the last epoch."""
    backbone, recipe = ROWS[row]
    config, folder = config_of(row), WORK / f"{row}-{seed}"
    start: tuple[Any, ...] = ()
    if recipe in QUANTIZED:
        start = ("--load-from", WORK / f"{backbone}_finetune-{seed}/latest.pth")
    if not (folder / "summary.json").exists():
        train(config, folder, data_root, "--seed", seed, *start)
    last = validations(folder)[-1]
    found = {"row": row, "seed": seed, "top-1": last["top-1"], "epochs": last["epoch"]}
    if recipe in EXPORTED:
        found["integer"] = test_exported(config, folder, data_root)
    return {**found, "minutes": round(spent(folder) / 60, 1)}


def test_exported(config: Path, folder: Path, data_root: Path) -> float:
    """Export the last weights, and return the exported model's top-1 on `val`, in percent."""
    model, results = folder / "model.onnx", folder / "integer.json"
    run_tool("export", config, folder / "latest.pth", "--out", model, "--data-root", data_root)
    run_tool("test", config, model, "--data-root", data_root, "--out", results, "--threads", 1)
    return json.loads(results.read_text())["top-1"]


def epoch_seconds(row: str, data_root: Path) -> Entry:
    """Return processor seconds of an epoch without cached features: an eighth of nine epochs minus one."""
    taken = []
    for epochs in (1, 9):
        folder = WORK / f"{row}-{epochs}-epochs"
        if not (folder / "summary.json").exists():
            options = ("feature_cache=False", f"total_epochs={epochs}", "evaluation.interval=9")
            train(CONFIGS / f"{row}.py", folder, data_root, options=options)
        taken.append(spent(folder))
    return {"row": row, "epoch_seconds": round((taken[1] - taken[0]) / 8, 2)}


def recorded(file: Path) -> list[Entry]:
    """Return the lines of a file of results."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def record(file: Path, entry: Entry) -> None:
    """Append a line to a file of results, which several processes may share."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(entry) + "\n")


def document(results: list[Entry], searches: list[Entry], compared: list[Entry]) -> str:
    """Return the page: one line per row with all its seeds, and the basis of the learning rates."""
    import torch

    lines = [
        "# Transfer learning to ants and bees",
        "",
        "`python benchmarks/transfer.py --data-root FOLDER` writes this page; `--rows ROW --seeds SEED` trains one",
        "row. A row is the recipe `configs/transfer/ROW.py` on ants and bees: 244 training and 153 validation images,",
        "so one image is 0.65 %. Top-1 in percent, on `val`, after the last epoch rather than the best one. Settings",
        "were compared on part of `train` (below). Results on `val` were seen too; low ones prolonged the search.",
        f"torch {torch.__version__}, one thread of {os.cpu_count()} cores ({platform.machine()}) that were shared with",
        "other work; minutes are a run's processor time. `tools/export.py` writes the exported model, and",
        "`tools/test.py` tests it in OpenVINO.",
        "",
        *_table(results, RECIPES),
        *_tutorials(results),
        *_timing(results),
        *transfer_features.section(compared, NAMES),
        *_searches(searches),
    ]
    return "\n".join([*lines, ""])


def _table(results: list[Entry], recipes: Sequence[str]) -> list[str]:
    """Return the completed rows of these recipes."""
    rows = [row for row, (_, recipe) in ROWS.items() if recipe in recipes]
    return [
        "| row | backbone | seeds | top-1 | mean | exported model | mean | epochs | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row, found) for row in rows if (found := [e for e in results if e["row"] == row and "seed" in e])),
    ]


def _tutorials(results: list[Entry]) -> list[str]:
    """Return the section of the tutorials' recipes, if any is complete."""
    if not any(ROWS[entry["row"]][1] in TUTORIAL for entry in results):
        return []
    return [
        "",
        "## The tutorials' own recipes",
        "",
        "`configs/transfer/tutorial/ROW.py`: the recipes of PyTorch's tutorials on transfer learning, with these",
        "backbones and seed 0, to compare with the recipes above. `cifar10` trains on 50,000 images for 5 epochs and",
        "tests on 10,000; compare it with `configs/cifar10/mobilenet_v2_transfer_features.py`.",
        "",
        *_table(results, TUTORIAL),
    ]


def _line(row: str, found: list[Entry]) -> str:
    found = sorted(found, key=lambda entry: entry["seed"])
    integer = [entry["integer"] for entry in found if "integer" in entry]
    seeds = ", ".join(str(entry["seed"]) for entry in found)
    minutes = _mean([entry["minutes"] for entry in found])
    images = TEST_IMAGES if row.endswith("cifar10") else VAL_IMAGES
    top_1 = [entry["top-1"] for entry in found]
    cells = [f"`{row}`", NAMES[ROWS[row][0]], seeds, *_cells(top_1, images), *_cells(integer, images)]
    return f"| {' | '.join([*cells, str(found[0]['epochs']), f'{minutes:.1f}'])} |"


def _cells(values: list[float], images: int) -> list[str]:
    """Return the values, and their mean with the number of misclassified images."""
    if not values:
        return ["", ""]
    wrong = images * (1 - _mean(values) / 100)
    return [", ".join(f"{value:.1f}" for value in values), f"**{_mean(values):.1f}** ({wrong:.1f} wrong)"]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _timing(results: list[Entry]) -> list[str]:
    timed = {entry["row"]: entry["epoch_seconds"] for entry in results if "epoch_seconds" in entry}
    pairs = [(b, timed.get(f"{b}_features"), timed.get(f"{b}_int8_features")) for b in SEEDS]
    rows = [f"| {NAMES[b]} | {f:.2f} | {i:.2f} | {f / i:.1f} |" for b, f, i in pairs if f and i]
    if not rows:
        return []
    return [
        "",
        "## An epoch without cached features",
        "",
        "Processor seconds for 244 images of 224 pixels on one thread, including reading and the head's step, with",
        "`feature_cache=False`. `--times` measures an eighth of the difference between runs of nine epochs and of one.",
        "",
        "| backbone | float extractor | integer extractor | ratio |",
        "|---|---|---|---|",
        *rows,
    ]


def _searches(searches: list[Entry]) -> list[str]:
    if not searches:
        return []
    learned = TRAIN_IMAGES - len(HELD_OUT)
    return [
        "",
        "## How learning rates were chosen",
        "",
        "`python benchmarks/transfer.py --data-root FOLDER --search RECIPE --options OPTIONS` tests on every fifth",
        f"image of `train` ({len(HELD_OUT)}) and trains on the other {learned}. After the last epoch:",
        "",
        "| recipe | options | top-1 | loss |",
        "|---|---|---|---|",
        *(
            f"| `{entry['row']}` | {_options(entry)} | {entry['top-1']:.1f} | {entry['loss']:.3f} |"
            for entry in searches
        ),
    ]


def _options(entry: Entry) -> str:
    return f"`{' '.join(entry['options'])}`" if entry["options"] else "none"


def main() -> None:
    """Train the remaining rows, and write the page after each; or search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", help="train only with these seeds")
    parser.add_argument("--times", action="store_true", help="only time the extractors' epochs")
    parser.add_argument(
        "--compare", metavar="BACKBONE", choices=list(NAMES), help="only compare float features with integer ones"
    )
    parser.add_argument(
        "--search", metavar="RECIPE", choices=list(ROWS), help="train on part of `train`, test on the rest"
    )
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="config overrides of the search")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/transfer.md")
    args = parser.parse_args()
    results, searches = args.out.with_suffix(".jsonl"), args.out.with_name("transfer_search.jsonl")
    compared = args.out.with_name("transfer_compared.jsonl")
    if args.compare:
        seeds = args.seeds or list(range(4))
        record(compared, transfer_features.compare(args.compare, CONFIGS, args.data_root, seeds))
    elif args.search:
        record(searches, search(args.search, args.options, (args.seeds or [0])[0], args.data_root))
    elif args.times:
        known = {entry["row"] for entry in recorded(results) if "epoch_seconds" in entry}
        for row in (row for row, (_, recipe) in ROWS.items() if recipe in TIMED and row not in known):
            record(results, epoch_seconds(row, args.data_root))
    else:
        wanted = [(row, seed) for row in args.rows for seed in seeds_of(row)]
        for row, seed in sorted(wanted, key=lambda pair: pair[1]):
            done = any((entry["row"], entry.get("seed")) == (row, seed) for entry in recorded(results))
            if not done and (args.seeds is None or seed in args.seeds):
                record(results, measure(row, seed, args.data_root))
            args.out.write_text(document(recorded(results), recorded(searches), recorded(compared)))
    args.out.write_text(document(recorded(results), recorded(searches), recorded(compared)))


if __name__ == "__main__":
    main()

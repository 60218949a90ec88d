"""The recipe of `lbitcls init` on three folders of images; the table is docs/results/init_recipe.md.

    python benchmarks/init_recipe.py --data-root FOLDER [--rows cifar10/squeezenet1_1/recipe …] [--seeds 0 1]

`FOLDER` contains `cifar10_jpg.tar.gz`, `MNIST`, `hymenoptera_256.tar.gz` (or the folder) and `weights`. The script
extracts a small folder of images from each set, and runs `lbitcls init` and `lbitcls train` on it. Completed rows (with
a line in the `.jsonl` file next to the table) are not trained again, and interrupted ones resume, so the command may be
stopped and started at any time.

Rows: `probe`, a logistic regression on the features of the pretrained backbone; `earlier`, the recipe that `init` wrote
before it had a probe phase; `recipe` and `recipe_4w4f`, the config of `lbitcls init` without changes and with
`--quantize lsq-4w4f`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import transfer_features

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "work_dirs/init_recipe"
WEIGHTS = {
    "mobilenet_v2": "weights/mobilenet_v2_tf2_int8deq_flipw.pth",
    "squeezenet1_1": "weights/squeezenet1_1_caffe_fp16.pth",
}
CIFAR10 = ("airplane", "bird", "cat", "deer", "dog")
FOLDERS = {
    "cifar10": f"CIFAR-10: {', '.join(CIFAR10)}; 30 images of each for training, 40 for validation",
    "mnist": "MNIST: 15 images of each digit for training, 20 for validation",
    "hymenoptera": "ants and bees: 244 and 153 images",
}
PARTS = {"train": 0, "val": 1}
NUMBERS = {"cifar10": (30, 40), "mnist": (15, 20)}
RECIPES = ("probe", "earlier", "recipe", "recipe_4w4f")
SHORTER = ("num_threads=1", "data.workers_per_gpu=0", "+log_config.pictures=False", "+export=None")
ROWS = [f"{name}/{backbone}/{recipe}" for name in FOLDERS for backbone in WEIGHTS for recipe in RECIPES]
Entry = dict[str, Any]


def image_folder(name: str, data_root: Path) -> Path:
    """Return the folder of images `name`, with `train` and `val`; extract it first if it does not exist."""
    folder = WORK / name
    if not (folder / "complete").exists():
        writers = {"cifar10": _cifar10(data_root), "mnist": _mnist(data_root), "hymenoptera": _hymenoptera(data_root)}
        for file, content in writers[name]:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (folder / "complete").touch()
    return folder


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield PurePosixPath(*PurePosixPath(member.name).parts[1:]), file.read()


def _hymenoptera(data_root: Path) -> Iterator[tuple[str, bytes]]:
    for path, content in _members(data_root / "hymenoptera_256.tar.gz"):
        if len(path.parts) == 3:
            yield str(path), content


def _cifar10(data_root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the first files of each class, by name: those of the training set, and for `val` those of the test set."""
    found = {path: content for path, content in _members(data_root / "cifar10_jpg.tar.gz") if len(path.parts) == 3}
    for part, number in zip(PARTS, NUMBERS["cifar10"], strict=True):
        for kind in CIFAR10:
            given = "train" if part == "train" else "test"
            paths = sorted(path for path in found if path.parts[:2] == (given, kind))
            yield from ((f"{part}/{kind}/{path.name}", found[path]) for path in paths[:number])


def _mnist(data_root: Path) -> Iterator[tuple[str, bytes]]:
    import io

    import numpy as np
    from PIL import Image

    from lbitcls.datasets.mnist import read_idx

    for (part, number), given in zip(zip(PARTS, NUMBERS["mnist"], strict=True), ("train", "t10k"), strict=True):
        images, labels = (
            read_idx(data_root / "MNIST/raw" / f"{given}-{kind}.gz")
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        for digit in range(10):
            for index in np.flatnonzero(labels == digit)[:number]:
                file = io.BytesIO()
                Image.fromarray(images[index]).save(file, "PNG")
                yield f"{part}/{digit}/{index:05d}.png", file.getvalue()


def config_of(name: str, backbone: str, recipe: str, data_root: Path) -> Path:
    """Return the config of a row, written by `lbitcls init` unless it exists."""
    folder = image_folder(name, data_root)
    config = WORK / f"{name}_{backbone}_{recipe}.py"
    if config.exists():
        return config
    if recipe in ("probe", "earlier"):
        base = config_of(name, backbone, "recipe", data_root)
        train_images = sum(1 for _ in (folder / "train").rglob("*.*"))
        config.write_text(f"_base_ = {base.name!r}\n" + (PROBE if recipe == "probe" else earlier(train_images)))
        return config
    quantize = ("--quantize", "lsq-4w4f") if recipe == "recipe_4w4f" else ()
    weights = (data_root / WEIGHTS[backbone]).resolve()
    run("init", folder, "--out", config, "--backbone", backbone, "--pretrained", weights, *quantize)
    return config


PROBE = "data = dict(train=dict(pipeline={{_base_.test_pipeline}}))\n"


def earlier(train_images: int) -> str:
    """Return the sections in which the earlier recipe differed: 6,000 images in all, head and backbone together."""
    batch = 16 if train_images < 1000 else 32
    steps, epochs = -(-train_images // batch), min(max(round(6_000 / train_images), 5), 30)
    return f"""feature_cache = None
custom_hooks = []
optimizer = dict(
    _delete_=True,
    type="AdamW",
    lr=0.001,
    weight_decay=0.01,
    paramwise_cfg=dict(custom_keys={{"backbone": dict(lr_mult=0.03)}}),
)
lr_config = dict(
    _delete_=True,
    policy="CosineAnnealing",
    min_lr=0.0,
    by_epoch=False,
    warmup="linear",
    warmup_iters={steps},
)
total_epochs = {epochs}
"""


def run(verb: str, *arguments: Any) -> None:
    """Run a command of `lbitcls` in a new process; exit if it fails."""
    command = [sys.executable, "-m", "lbitcls.commands.main", verb, *map(str, arguments)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"lbitcls {verb} failed; run the command again to resume it.")


def probe(config: Path, data_root: Path) -> Entry:
    """Return the top-1 of logistic regressions on the pretrained features of `val`, by L2 penalty, in percent."""
    found = transfer_features.features(config, data_root)
    images = len(found["val"][1])
    wrong = {penalty: transfer_features.probe(found, penalty) for penalty in transfer_features.PENALTIES}
    return {"by_penalty": {str(penalty): 100 * (1 - number / images) for penalty, number in wrong.items()}}


def measure(row: str, seed: int, data_root: Path) -> Entry:
    """Train a row with a seed, and return its results on `val`."""
    name, backbone, recipe = row.split("/")
    config = config_of(name, backbone, recipe, data_root)
    if recipe == "probe":
        found = probe(config, data_root)
        return {"row": row, "seed": seed, "top-1": max(found["by_penalty"].values()), **found}
    folder = WORK / f"{name}_{backbone}_{recipe}-{seed}"
    if not (folder / "summary.json").exists():
        began, clock = processor_seconds(), folder / "seconds"
        before = float(clock.read_text()) if clock.exists() else 0.0
        try:
            run("train", config, "--work-dir", folder, "--resume", "--seed", seed, "--options", *SHORTER)
        finally:
            if folder.exists():
                clock.write_text(str(before + processor_seconds() - began))
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    val = {record["epoch"]: record["top-1"] for record in records if record["mode"] == "val"}
    minutes = round(float((folder / "seconds").read_text()) / 60, 1)
    return {"row": row, "seed": seed, **_results(config, val), "minutes": minutes}


def _results(config: Path, val: dict[int, float]) -> Entry:
    """Return the accuracies of a run: best and last of each of its phases, by the epochs in which these end."""
    from lbitcls.utils import Config

    cfg = Config.fromfile(config)
    ends = [hook["epoch"] for hook in cfg.get("custom_hooks") or [] if hook["type"] == "UnfreezeHook"]
    ends += [cfg.calibration.epoch] if cfg.get("calibration") else []
    phases = list(zip([0, *ends], [*ends, cfg.total_epochs], strict=True))
    of = [[val[epoch] for epoch in range(begin + 1, end + 1)] for begin, end in phases]
    return {
        "top-1": of[-1][-1],
        "best": [max(values) for values in of],
        "last": [v[-1] for v in of],
        "epochs": len(val),
    }


def processor_seconds() -> float:
    """Return the processor time of all child processes so far; on a shared machine, wall-clock time says little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def recorded(file: Path) -> list[Entry]:
    """Return the lines of a file of results."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def document(results: list[Entry]) -> str:
    """Return the page: one line per row with all its seeds, and the rows that have not been trained."""
    rows = [line for row in ROWS if (line := _row(row, [entry for entry in results if entry["row"] == row]))]
    known = {entry["row"] for entry in results}
    return "\n".join(
        [
            "# The recipe of `lbitcls init`",
            "",
            "`python benchmarks/init_recipe.py --data-root FOLDER` writes this page; `--rows ROW --seeds SEED`",
            "trains one row: a folder, a backbone and a recipe. Top-1 in percent on `val`. `probe` is a logistic",
            "regression on the pretrained features, converged, with the best of four L2 penalties; `earlier`, head",
            "and backbone together for 6,000 images, as `init` wrote before; `recipe`, the config that `init` writes;",
            "`recipe_4w4f`, with `--quantize lsq-4w4f`. Best: the highest of a phase's epochs; last: after its last",
            "epoch. The run keeps the best weights of the float phases, so it is at least as good as its own first",
            "phase on these images; `probe` is another classifier, which this does not bound. As these images also",
            "chose the epoch, the best is optimistic by a few images; a separate `test` folder tells more.",
            "",
            *(f"- `{name}`: {text}." for name, text in FOLDERS.items()),
            "",
            "| row | seeds | best of each phase | last of each phase | epochs | minutes |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Not trained yet: {', '.join(f'`{row}`' for row in ROWS if row not in known) or 'none'}.",
            "",
        ]
    )


def _row(row: str, found: list[Entry]) -> str | None:
    if not found:
        return None
    seeds = ", ".join(str(entry["seed"]) for entry in found)
    best, last = ("; ".join(_accuracies(entry, key) for entry in found) for key in ("best", "last"))
    minutes = ", ".join(str(entry.get("minutes", "")) for entry in found)
    epochs = found[0].get("epochs", "")
    return f"| `{row}` | {seeds} | {best} | {last} | {epochs} | {minutes} |"


def _accuracies(entry: Entry, key: str) -> str:
    return " → ".join(f"{value:.1f}" for value in entry.get(key, [entry["top-1"]]))


def main() -> None:
    """Train the remaining rows, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/init_recipe.md")
    args = parser.parse_args()
    results = args.out.with_suffix(".jsonl")
    for seed in args.seeds:
        for row in args.rows:
            if not any((entry["row"], entry["seed"]) == (row, seed) for entry in recorded(results)):
                entry = measure(row, seed, args.data_root)
                with results.open("a") as lines:
                    lines.write(json.dumps(entry) + "\n")
            args.out.write_text(document(recorded(results)))
    args.out.write_text(document(recorded(results)))


if __name__ == "__main__":
    main()

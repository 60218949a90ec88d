"""Accuracy of quantization without training on 1,000 ImageNet images, in five folds, as a page in docs/results/ptq.md.

    python benchmarks/ptq.py --data-root FOLDER [--rows mobilenet_v2/float/0 …] [--out docs/results/ptq.md]

`FOLDER` contains `imagenet1000_256.tar.gz` (or the folder), and `weights/` the two networks. Fold f calibrates on
every fifth image, beginning with the f-th, and tests on the other 800. A row is `NETWORK/KIND/FOLD`: KIND is `float`,
or bits and rounding such as `4w8f_adaround`; `qdrop` may have a number of steps, as in `4w4f_qdrop_1000`. Each row is
one call of `lbitcls calibrate` and one of `lbitcls test`. Completed rows (with a line in the `.jsonl` file beside the
page) are not computed again, and an interrupted calibration continues at its next block.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from result_rows import ROOT, Results, lbitcls, recorded, wrapped

FOLDS, IMAGES = 5, 1000
NETWORKS = {
    "mobilenet_v2": ("MobileNetV2", "mobilenet_v2_tf2_int8deq_flipw.pth"),
    "squeezenet1_1": ("SqueezeNet 1.1", "squeezenet1_1_caffe_fp16.pth"),
}
KINDS = ("float", "4w8f_nearest", "4w8f_adaround", "4w4f_nearest", "4w4f_qdrop", "4w4f_qdrop_1000")
ROWS = [f"{network}/{kind}/{fold}" for fold in range(FOLDS) for network in NETWORKS for kind in KINDS]
AIMS = {"4w8f_adaround": 2.5, "4w4f_qdrop": 7.0, "4w4f_qdrop_1000": 7.0}
"""Largest loss of top-1, in points."""


def config_text(network: str, kind: str, fold: int) -> str:
    """Return the config of a row: one of `configs/calibration/`, with the images of the fold."""
    bits, rounding, steps = [*kind.split("_"), "", ""][:3]
    learned = "qdrop" if bits == "4w4f" else "adaround"
    base = ROOT / f"configs/calibration/{network}_{bits}_{learned}.py"
    data = f"calibration=dict(indices=range({fold}, {IMAGES}, {FOLDS})), "
    data += f"test=dict(indices=[i for i in range({IMAGES}) if i % {FOLDS} != {fold}])"
    lines = [f"_base_ = {str(base)!r}", f"data = dict({data})"]
    options = f"rounding={rounding!r}" + (f", iterations={steps}" if steps else "")
    if rounding == "nearest":
        return "\n".join([*lines, "calibration = None", ""])
    return "\n".join([*lines, f"calibration = dict(reconstruct=dict({options}))", ""])


def run_row(row: str, work: Path, data_root: Path) -> dict[str, Any]:
    """Calibrate, test, and return the results of a row: top-1, minutes of calibration, and the right images."""
    network, kind, fold = row.split("/")
    folder = work / network / kind / fold
    folder.mkdir(parents=True, exist_ok=True)
    model, minutes = data_root / "weights" / NETWORKS[network][1], 0.0
    config = folder / "row.py"
    config.write_text(config_text(network, "4w8f_nearest" if kind == "float" else kind, int(fold)))
    if kind == "float":
        config.write_text(config.read_text() + "quant_transformer = None\n")
    else:
        minutes = calibrate(config, model, folder, data_root)
        model = folder / "quantized.pth"
    file = folder / "test.npz"
    lbitcls("test", str(config), str(model), "--predictions", str(file), "--data-root", str(data_root), work=folder)
    found = np.load(file)
    right = found["labels"] == found["predictions"]
    bits = np.packbits(right).tobytes().hex()
    return {"row": row, "top-1": 100 * float(right.mean()), "minutes": round(minutes, 1), "right": bits, **machine()}


def calibrate(config: Path, weights: Path, folder: Path, data_root: Path) -> float:
    """Write `quantized.pth`, unless it exists, and return the minutes that the command took."""
    out, clock = folder / "quantized.pth", folder / "seconds"
    spent = float(clock.read_text()) if clock.exists() else 0.0
    if not out.exists():
        began = time.monotonic()
        paths = [str(config), str(weights), "--out", str(out), "--data-root", str(data_root)]
        try:
            lbitcls("calibrate", *paths, "--no-test", work=folder)
        finally:  # an interrupted try counts, unless this process is killed with it
            spent += time.monotonic() - began
            clock.write_text(str(spent))
    return spent / 60


def machine() -> dict[str, str]:
    """Return PyTorch's version and the machine's name."""
    import torch

    from lbitcls.deploy.runtime.benchmark import cpu_name

    return {"torch": torch.__version__, "machine": f"{cpu_name()}, {os.cpu_count()} cores"}


def tested(fold: int) -> np.ndarray:
    """Return the positions of the images that a fold tests on."""
    positions = np.arange(IMAGES)
    return positions[positions % FOLDS != fold]


def difference(results: Results, network: str, kind: str) -> tuple[float, float, list[int]] | None:
    """Return mean difference to float in points, its paired standard error over images, and the folds of both."""
    folds = [f for f in range(FOLDS) if f"{network}/{kind}/{f}" in results and f"{network}/float/{f}" in results]
    if not folds:
        return None
    sums, counts = np.zeros(IMAGES), np.zeros(IMAGES)
    for fold in folds:
        ours, theirs = (_right(results[f"{network}/{name}/{fold}"]) for name in (kind, "float"))
        sums[tested(fold)] += ours - theirs
        counts[tested(fold)] += 1
    each = 100 * sums[counts > 0] / counts[counts > 0]  # an image is tested in up to four folds: one observation
    return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5), folds


def _right(result: dict[str, Any]) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(result["right"]), np.uint8))[: IMAGES - IMAGES // FOLDS].astype(
        float
    )


def table(results: Results) -> list[str]:
    """Return the lines of the table: a network and a kind each, over the folds that are complete."""
    lines = [
        "| network | bits | rounding | folds | top-1 | difference to float | aim | minutes a fold |",
        "|---" * 8 + "|",
    ]
    for network, (title, _) in NETWORKS.items():
        for kind in KINDS:
            found = difference(results, network, kind)
            if found is None:
                continue
            mean, error, folds = found
            rows = [results[f"{network}/{kind}/{fold}"] for fold in folds]
            top, minutes = (float(np.mean([row[key] for row in rows])) for key in ("top-1", "minutes"))
            bits, _, rounding = kind.partition("_")
            loss = "" if kind == "float" else f"{mean:+.2f} ± {error:.2f}"
            aim = f"-{AIMS[kind]}" if kind in AIMS else ""
            shown = "W{}A{}".format(*bits.removesuffix("f").split("w")) if rounding else "float"
            spent = "" if kind == "float" else f"{minutes:.0f}"
            cells = [title, shown, rounding.replace("_", ", steps: "), str(len(folds)), f"{top:.2f}", loss, aim, spent]
            lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > 2 else ["No row is complete yet."]


def page(results: Results) -> str:
    """Return the document for completed rows."""
    made = sorted({f"torch {found['torch']} on {found['machine']}" for found in results.values()})
    about = """
        `python benchmarks/ptq.py --data-root FOLDER` writes this page; `--rows ROW` computes one row. The
        data are 1,000 ImageNet images, one of each class. In fold f every fifth image, beginning with the
        f-th, calibrates, and the other 800 test: labels are not used for calibration, and no image of a
        fold does both. The first and the last layer have 8 bits, weights one scale per channel, ranges
        the least squared error. Top-1 in percent, mean over the folds that are complete; ± is the
        standard error of the paired difference to float over the images, each counted once with its mean
        over folds.
    """
    caution = """
        **The accuracies are no estimates for new images.** MobileNetV2's weights were converted from a
        published 8-bit file, SqueezeNet's from a Caffe model; both networks likely saw these images in
        training. The differences compare roundings with each other and with float on the same images.
    """
    times = "The rows shared the cores with other work: the minutes do not measure speed."
    lines = [
        "# Quantization without training",
        "",
        *wrapped(" ".join(about.split())),
        "",
        *wrapped(" ".join(caution.split())),
    ]
    lines += ["", *table(results), "", *wrapped(f"{times} Machines: {'; '.join(made) or 'none yet'}.")]
    lines += ["", *wrapped("How the roundings are learned: [reconstruction](../reconstruction.md).")]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compute the wanted rows that are not complete, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS, metavar="ROW")
    parser.add_argument("--work-root", type=Path, default=ROOT / "work_dirs/ptq")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/ptq.md")
    args = parser.parse_args()
    file, work = args.out.with_suffix(".jsonl"), args.work_root.resolve()
    for row in args.rows:
        if row not in recorded(file):
            result = run_row(row, work, args.data_root.resolve())
            with file.open("a") as lines:
                lines.write(json.dumps(result) + "\n")
            shutil.rmtree(work.joinpath(*row.split("/")))
            args.out.write_text(page(recorded(file)))
    args.out.write_text(page(recorded(file)))


if __name__ == "__main__":
    main()

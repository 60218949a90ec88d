"""Draw docs/doctor.png: statistics of `QuantStatsHook` in a run that falls ill, the quickstart's at 2 bits.

    python docs/plot_doctor.py [--out docs/doctor.png] [--log LOG_JSONL]

The run takes about a minute of one core; its warnings are printed. `--log` draws an existing log instead.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lbitcls.analysis.figures import LINES, new_figure, save, style
from lbitcls.apis import train_classifier
from lbitcls.core.hooks.log import QUANTIZERS
from lbitcls.utils.config import Config

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, FLOAT_EPOCHS, RATE = 12, 4, 0.3
PANELS = {
    "oscillating": "share of oscillating weights",
    "sqnr_db": "SQNR of the weight, dB",
    "gradient_ratio": "gradient ratio of the weight's scale",
}


def sick_config(folder: Path) -> Config:
    """Return the quickstart's config with all layers at 2 bits, and a high, constant learning rate."""
    cfg = Config.fromfile(ROOT / "configs" / "quickstart" / "digits_lsq_4w4f.py")
    policy = cfg.quant_transformer.quan_policy
    for entry in (policy.Conv2d, policy.Linear):
        entry.update(num_bit_w=2, num_bit_a=2)
    cfg.quant_transformer.special_layers = None
    cfg.calibration.epoch, cfg.total_epochs = FLOAT_EPOCHS, EPOCHS
    cfg.optimizer.lr, cfg.lr_config = RATE, dict(policy="fixed")
    changes: dict[str, Any] = dict(
        custom_hooks=[dict(type="QuantStatsHook", interval=10)],
        log_config=dict(interval=10, hooks=[dict(type="TextLoggerHook")], pictures=False),
        export=None,
        kernels="plain",
        work_dir=str(folder),
    )
    return Config({**cfg._cfg_dict, **changes})


def read_stats(log: Path) -> tuple[np.ndarray, dict[str, list[dict[str, float]]]]:
    """Return the epochs of the records, and each layer's measures of its weight."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    length = max(record["iter"] for record in records if record["mode"] == "train")
    found = [record for record in records if record["mode"] == QUANTIZERS]
    epochs = np.array([record["epoch"] - 1 + record["iter"] / length for record in found])
    return epochs, {name: [r["layers"][name]["weight"] for r in found] for name in found[0]["layers"]}


def draw(log: Path) -> Any:
    """Return the figure of a log: a panel for each measure, a line for each layer."""
    epochs, layers = read_stats(log)
    with style():
        figure = new_figure(10, 3.4)
        for panel, (measure, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for (name, values), color in zip(layers.items(), LINES, strict=True):
                panel.plot(epochs, [value.get(measure, np.nan) for value in values], color=color, label=name)
            panel.set_title(title, loc="left", fontweight="bold")
            panel.set_xlabel("epoch")
        figure.axes[2].set_yscale("log")
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    """Train the run unless its log is given, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "doctor.png")
    parser.add_argument("--log", type=Path, help="log.jsonl of a run with QuantStatsHook")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.log is None:
            train_classifier(sick_config(Path(folder)))
        print(f"wrote {save(draw(args.log or Path(folder) / 'log.jsonl'), args.out)}")


if __name__ == "__main__":
    main()

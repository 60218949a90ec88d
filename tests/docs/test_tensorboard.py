"""docs/tensorboard.md: options, columns and tags are the code's, its configs train."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from lbitcls.apis import train_classifier
from lbitcls.tracking import tensorboard
from lbitcls.tracking.hparams import COLUMNS, FIRST
from lbitcls.utils import Config

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "tensorboard.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    return TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_options_are_those_of_the_hook() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section("Options"), re.MULTILINE))
    parameters = inspect.signature(tensorboard.TensorboardLoggerHook).parameters
    assert list(rows) == list(parameters)
    for name, parameter in parameters.items():
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        assert eval(rows[name]) == default, name
    assert f"at most {tensorboard.LOOKS} inspections" in TEXT and f"at most {tensorboard.MOST_LEVELS} levels" in TEXT


def test_columns_are_those_of_the_table() -> None:
    named = re.findall(r"`(\w+)`", section("The table of hyperparameters").partition("\n\n`bits`")[0])
    assert named == [*FIRST, *(name for name in COLUMNS if name not in FIRST)]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_its_configs_train(number: int, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = Config.fromfile(ROOT / "configs" / "quickstart" / "digits_lsq_4w4f.py")
    names: dict[str, Any] = {}
    exec(BLOCKS[number], names)
    cfg.log_config = names["log_config"]
    cfg.merge_from_dict({"total_epochs": 1, "calibration.epoch": 0, "export": None, "kernels": "plain"})
    cfg.work_dir = str(tmp_path)
    train_classifier(cfg)
    tags = EventAccumulator(str(tmp_path / "tf_logs")).Reload().Tags()
    shown = {tag for kind in ("scalars", "histograms", "images") for tag in tags[kind]}
    if number == 0:
        rows = section("What is shown")
        named = re.findall(r"`((?:train|val|best|size|predictions|pictures|weight|input)\w*)/", rows)
        assert {tag.partition("/")[0] for tag in shown} == set(named) - {"train_weight_sqnr_db"}  # of QuantStatsHook
        assert [tag for tag in tags["tensors"] if not tag.startswith("_hparams_")] == ["config/text_summary"]
    else:
        layers = {tag.split("/")[1] for tag in shown if tag.startswith(("weight", "input"))}
        assert layers == {f"backbone.layer{i}.0.conv{j}" for i, j in ((1, 1), (1, 2), (2, 2), (3, 2))}
        assert not [tag for tag in shown if tag.startswith("predictions")]

"""Testing a checkpoint: metrics, rows, and checkpoints that do not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lbitcls.apis import test_classifier as classify
from lbitcls.apis import train_classifier
from lbitcls.utils.errors import CheckpointError, ConfigError


def test_metrics_and_rows(make_config: Any, tmp_path: Path, capsys: Any) -> None:
    cfg = make_config()
    summary = train_classifier(cfg)
    best = f"{cfg.work_dir}/best_top-1.pth"
    metrics = ["precision", "recall", "f1_score", "confusion"]
    out = tmp_path / "deep" / "metrics.json"
    results = classify(cfg, best, metrics=metrics, out=out, predictions=tmp_path / "rows.csv")
    assert results["top-1"] == summary["float"]["top1"]
    assert json.loads(out.read_text()) == results
    assert set(results) == {"loss", "top-1", "top-5", *metrics}
    assert sum(map(sum, results["confusion"])) == 360
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "prediction", "scores"] and len(rows) == 360
    hits = sum(row["label"] == row["prediction"] for row in rows)
    assert 100 * hits / 360 == pytest.approx(results["top-1"])
    assert sum(json.loads(rows[0]["scores"])) == pytest.approx(1, abs=1e-4)
    classify(cfg, best, predictions=tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [str(line["prediction"]) for line in lines] == [row["prediction"] for row in rows]
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    assert "top-1" in capsys.readouterr().out


def test_checkpoint_of_another_model(make_config: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    other = make_config(options={"model.backbone.width": 4, "model.head.in_channels": 8})
    with pytest.raises(CheckpointError, match="another model"):
        classify(other, f"{cfg.work_dir}/latest.pth")


def test_rows_in_an_unknown_format(make_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"\.csv or \.jsonl"):
        classify(make_config(), "x.pth", predictions="rows.txt")


def test_validation_set_where_there_is_no_test_set(make_config: Any) -> None:
    cfg = make_config(total_epochs=1)
    summary = train_classifier(cfg)
    del cfg.data["test"]
    assert classify(cfg, f"{cfg.work_dir}/best_top-1.pth")["top-1"] == summary["float"]["top1"]

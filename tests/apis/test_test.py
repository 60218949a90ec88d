"""Testing a checkpoint or a shipped file: metrics, rows, and what does not fit the config."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lbitcls.apis import evaluate, init_model, train_classifier
from lbitcls.apis import test_classifier as classify
from lbitcls.apis import test_model as check_model
from lbitcls.commands.main import main
from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.deploy.runtime.metadata import ModelInfo, write_info
from lbitcls.models import build_classifier
from lbitcls.utils import Config, load_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError
from lbitcls.workflows.class_results import print_classes, print_confusion

PIPELINE = [dict(type="Normalize", mean=[0.305], std=[0.376]), dict(type="Collect", keys=["img", "gt_label"])]


def test_metrics_and_rows(make_config: Any, tmp_path: Path, capsys: Any) -> None:
    cfg = make_config()
    summary = train_classifier(cfg)
    best = f"{cfg.work_dir}/best_top-1.pth"
    metrics = ["precision", "recall", "f1_score", "confusion"]
    out = tmp_path / "deep" / "metrics.json"
    results = classify(cfg, best, metrics=metrics, out=out, predictions=tmp_path / "rows.csv")
    assert results["top-1"] == summary["float"]["top1"]
    assert json.loads(out.read_text()) == results
    assert set(results) == {"loss", "top-1", "top-5", "correct", "total", "classes", *metrics}
    assert results["total"] == 360 and 100 * results["correct"] / 360 == pytest.approx(results["top-1"])
    assert sum(map(sum, results["confusion"])) == 360
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    named = ["true_class", "predicted_class"]
    assert list(rows[0]) == ["path", "label", "prediction", *named, "scores"] and len(rows) == 360
    hits = sum(row["label"] == row["prediction"] for row in rows)
    assert 100 * hits / 360 == pytest.approx(results["top-1"])
    assert sum(json.loads(rows[0]["scores"])) == pytest.approx(1, abs=1e-4)
    classify(cfg, best, predictions=tmp_path / "rows.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [str(line["prediction"]) for line in lines] == [row["prediction"] for row in rows]
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    classify(cfg, best, predictions=tmp_path / "rows.npz")
    arrays = np.load(tmp_path / "rows.npz")
    assert {name: arrays[name].shape for name in arrays} == {
        **dict.fromkeys(("paths", "labels", "predictions"), (360,)),
        "logits": (360, 10),
    }
    assert arrays["paths"].tolist() == [row["path"] for row in rows] and arrays["logits"].dtype == np.float32
    for name, column in (("labels", "label"), ("predictions", "prediction")):
        assert arrays[name].tolist() == [int(row[column]) for row in rows]
    scores = torch.from_numpy(arrays["logits"]).softmax(1)
    torch.testing.assert_close(scores, torch.tensor([json.loads(row["scores"]) for row in rows]))
    said = capsys.readouterr().out
    assert "top-1" in said and f"correct: {results['correct']} / 360" in said


@pytest.mark.parametrize("classes", [2, 7, 60])
def test_results_by_class(classes: int, capsys: Any) -> None:
    """They count each image once, by name, and their means over the classes that occur are the whole test's."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, max(classes - 2, 1), (200,), generator=generator)
    batches = [(torch.randn(len(part), classes, generator=generator), part) for part in labels.split(33)]
    model = torch.nn.Flatten()
    model.CLASSES = [f"name {number}" for number in range(classes)]
    metrics = ("precision", "recall", "f1_score", "confusion")
    results = check_model(model, batches, metrics=metrics)
    rows, confusion = results["classes"], np.array(results["confusion"])
    assert [row["class"] for row in rows] == model.CLASSES
    assert [row["images"] for row in rows] == confusion.sum(1).tolist() and sum(confusion.sum(1)) == results["total"]
    for row, true, said, hits in zip(rows, confusion.sum(1), confusion.sum(0), confusion.diagonal(), strict=True):
        if true + said == 0:
            assert row["precision"] is row["recall"] is row["f1_score"] is None
            continue
        assert row["recall"] == pytest.approx(100 * hits / true if true else 0)
        assert row["precision"] == pytest.approx(100 * hits / said if said else 0)
    for name in metrics[:3]:
        assert np.mean([row[name] for row in rows if row[name] is not None]) == pytest.approx(results[name])
    print_classes(rows)
    shown = capsys.readouterr().out
    assert sum(f"name {number} " in shown for number in range(classes)) == (classes if classes <= 40 else 20)


@pytest.mark.parametrize(("columns", "header"), [("200", "goldfinch"), ("60", " 2 ")])
def test_the_confusion_table_has_names(columns: str, header: str, monkeypatch: Any, capsys: Any) -> None:
    """Rows always have them, columns where they fit; otherwise both have the numbers too."""
    monkeypatch.setenv("COLUMNS", columns)
    names = ["house finch", "indigo bunting", "goldfinch", "junco", "brambling"]
    print_confusion(np.eye(5, dtype=int).tolist(), names)
    lines = capsys.readouterr().out.splitlines()
    assert header in next(line for line in lines if "true" in line)
    for number, name in enumerate(names):
        assert any((name if columns == "200" else f"{number} {name}") in line for line in lines[3:])
    assert max(map(len, lines)) <= int(columns)


def test_the_top_k_are_those_of_the_validation(make_config: Any, capsys: Any) -> None:
    cfg = make_config(total_epochs=1, options={"evaluation.metric_options": dict(topk=(1, 3, 20))})
    train_classifier(cfg)
    results = classify(cfg, f"{cfg.work_dir}/best_top-1.pth")
    assert (
        set(results) == {"loss", "top-1", "top-3", "correct", "total", "classes"}
        and results["top-1"] < results["top-3"]
    )
    capsys.readouterr()
    for wrong, message in (
        (dict(top=1), "Did you mean 'topk'"),
        (dict(topk=[0]), r"topk.0 must be an integer ≥ 1; got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            classify(make_config(options={"evaluation.metric_options": wrong}), "x.pth")


def test_before_any_training(make_config: Any, tmp_path: Path, capsys: Any) -> None:
    """Without a checkpoint the model is the one that a training would begin with; the log names its weights."""
    cfg = make_config(total_epochs=1, seed=3)
    best = train_classifier(cfg)["checkpoint"]
    trained = classify(cfg, best)
    capsys.readouterr()
    cfg.dump(tmp_path / "config.py")
    assert main(["test", str(tmp_path / "config.py"), "--options", f"load_from={best}"]) == 0
    assert f"weights of {best}" in capsys.readouterr().out
    assert classify(make_config(options={"model.pretrained": best})) == trained
    random = classify(cfg)
    assert "with random weights" in capsys.readouterr().out and random["top-1"] < trained["top-1"]
    entry = dict(type="LSQLinear", num_bit_w=4, num_bit_a=4)
    quantized = make_config(quant_transformer=dict(type="ModelTransformer", quan_policy=dict(Linear=entry)))
    with pytest.raises(ConfigError, match="2 quantizers, .* first, have not seen data yet.*lbitcls calibrate"):
        classify(quantized)


def test_a_model_at_hand(make_config: Any) -> None:
    """`test_model` gives what the command gives, for a classifier, and for any module and loader of pairs."""
    cfg = make_config(total_epochs=1)
    best = train_classifier(cfg)["checkpoint"]
    model = init_model(cfg, best)
    loader = build_dataloader(build_dataset(cfg.data.test), 50)
    expected = classify(cfg, best)
    measured = check_model(model, loader, topk=(1, 5))
    assert measured.pop("classes") == expected.pop("classes") and measured == pytest.approx(expected)
    assert evaluate(model, loader, torch.device("cpu"))["top-1"] == pytest.approx(expected["top-1"])
    pairs = [(batch["img"], batch["gt_label"]) for batch in loader]
    assert check_model(Predict(model), pairs)["correct"] == expected["correct"]
    with pytest.raises(DataError, match="a pair .images, labels.; got Tensor"):
        check_model(model, [pairs[0][0]])


class Predict(torch.nn.Module):
    """A classifier's logits, and nothing else of it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.model.predict(img)


def test_checkpoint_of_another_model(make_config: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    other = make_config(options={"model.backbone.width": 4, "model.head.in_channels": 8})
    with pytest.raises(CheckpointError, match="does not match the model"):
        classify(other, f"{cfg.work_dir}/latest.pth")


def test_rows_in_an_unknown_format(make_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"\.csv, \.jsonl or \.npz"):
        classify(make_config(), "x.pth", predictions="rows.txt")


def test_an_interrupted_write_leaves_the_older_files(make_config: Any, tmp_path: Path, monkeypatch: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    files = {name: tmp_path / name for name in ("results.json", "rows.csv", "rows.jsonl")}
    for file in files.values():
        file.write_text("of before")
    before = sorted(tmp_path.rglob("*"))

    def stopped(*row: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("lbitcls.workflows.testing._named_row", stopped)
    for name in ("rows.csv", "rows.jsonl"):
        with pytest.raises(KeyboardInterrupt):
            classify(cfg, f"{cfg.work_dir}/latest.pth", predictions=files[name])
    no_utf8 = "x" * 10_000 + "\ud800"
    monkeypatch.setattr("lbitcls.workflows.testing.json_text", lambda results, indent: no_utf8)
    with pytest.raises(UnicodeEncodeError):
        classify(cfg, f"{cfg.work_dir}/latest.pth", out=files["results.json"])
    assert [file.read_text() for file in files.values()] == ["of before"] * 3
    assert sorted(tmp_path.rglob("*")) == before


def test_results_replace_nothing_that_is_used(make_config: Any, tmp_path: Path) -> None:
    cfg, checkpoint, rows = make_config(), tmp_path / "x.pth", tmp_path / "rows.csv"
    for given in (dict(out=checkpoint), dict(out=rows, predictions=rows)):
        with pytest.raises(ConfigError, match="would replace a file that this command uses"):
            classify(cfg, checkpoint, **given)


def test_validation_set_where_there_is_no_test_set(make_config: Any) -> None:
    cfg = make_config(total_epochs=1)
    summary = train_classifier(cfg)
    del cfg.data["test"]
    assert classify(cfg, f"{cfg.work_dir}/best_top-1.pth")["top-1"] == summary["float"]["top1"]


@pytest.fixture(scope="module")
def shipped(tiny_sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model trained for an epoch: its config, the summary, and the float ONNX file of its best weights."""
    cfg = Config({**tiny_sections, "work_dir": str(tmp_path_factory.mktemp("shipped")), "total_epochs": 1})
    summary = train_classifier(cfg)
    model = build_classifier(cfg.model)
    load_checkpoint(model, summary["checkpoint"])
    path = Path(cfg.work_dir) / "model.onnx"
    model.eval().forward = model.predict
    torch.onnx.export(
        *(model, (torch.zeros(2, 1, 8, 8),), str(path)),
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("N")},),
    )
    return cfg, summary, path


def describe(path: Path, target: Path, **facts: Any) -> Path:
    """The file `path` as `target`, with a record of what it is."""
    known: dict[str, Any] = dict(version="0", input_shape=(1, 8, 8), num_classes=10, pipeline=PIPELINE, layers=[])
    model = onnx.load(path)
    write_info(model, ModelInfo(**{**known, **facts}))
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_shipped_file_is_tested_as_its_checkpoint(engine: str, shipped: Any, tmp_path: Path, caplog: Any) -> None:
    cfg, summary, path = shipped
    path = describe(path, tmp_path / "model.onnx", classes=[str(i) for i in range(10)])
    metrics = ["precision", "recall", "f1_score", "confusion"]
    rows = {name: tmp_path / f"{name}.jsonl" for name in ("checkpoint", "file")}
    expected = classify(cfg, summary["checkpoint"], metrics=metrics, predictions=rows["checkpoint"])
    got = classify(cfg, path, metrics=metrics, predictions=rows["file"], engine=engine, threads=1)
    for name in ("confusion", "classes"):
        assert got.pop(name) == expected.pop(name)
    assert got == pytest.approx(expected, abs=1e-4)
    read = {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in rows.items()}
    assert len(read["file"]) == 360
    for left, right in zip(read["checkpoint"], read["file"]):
        assert left["scores"] == pytest.approx(right.pop("scores"), abs=1e-4)
        assert {key: value for key, value in left.items() if key != "scores"} == right


def test_files_that_do_not_fit_the_config(shipped: Any, tmp_path: Path, make_config: Any, capsys: Any) -> None:
    cfg, _, path = shipped
    with pytest.raises(CheckpointError, match="is a backbone.*--part model"):
        classify(cfg, describe(path, tmp_path / "part.onnx", part="backbone", num_classes=None), threads=1)
    with pytest.raises(DataError, match=r"does not number the classes as the file .*order\.onnx"):
        classify(cfg, describe(path, tmp_path / "order.onnx", classes=[str(9 - i) for i in range(10)]), threads=1)
    with pytest.raises(ConfigError, match="the model has 4 classes"):
        classify(cfg, describe(path, tmp_path / "few.onnx", num_classes=4), threads=1)
    bigger = make_config(options={"data.test.pipeline": [dict(type="Resize", size=9), *PIPELINE]})
    with pytest.raises(DataError, match=r"expects images \(N, 1, 8, 8\); got \(128, 1, 9, 9\)"):
        classify(bigger, path, threads=1)
    capsys.readouterr()
    classify(cfg, describe(path, tmp_path / "other.onnx", pipeline=PIPELINE[1:]), threads=1)
    assert "exported with a test pipeline other than that of data.test" in capsys.readouterr().out


def test_a_foreign_file(shipped: Any, capsys: Any) -> None:
    cfg, summary, path = shipped
    capsys.readouterr()
    assert classify(cfg, path, threads=1)["top-1"] == pytest.approx(summary["float"]["top1"])
    assert "was not written by lbitcls" in capsys.readouterr().out


def test_a_file_that_gives_no_logits(shipped: Any, tmp_path: Path) -> None:
    cfg, _, path = shipped
    model = onnx.load(path)
    feature = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    model.graph.output[0].name = feature
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "features.onnx")
    with pytest.raises(CheckpointError, match=r"not logits \(N, K\)"):
        classify(cfg, tmp_path / "features.onnx", threads=1)


def test_images_that_are_not_finite(shipped: Any, make_config: Any) -> None:
    _, _, path = shipped
    broken = make_config(options={"data.test.pipeline": [dict(type="Normalize", mean=[0.3], std=[1e-45]), PIPELINE[1]]})
    with pytest.raises(DataError, match=r"expects finite values, but images\[0\] contains NaN"):
        classify(broken, path, threads=1)


def test_engines_are_for_files(shipped: Any, write_config: Any, capsys: Any) -> None:
    _, summary, path = shipped
    config = str(write_config())
    assert main(["test", config, summary["checkpoint"], "--engine", "openvino"]) == 2
    assert "need an exported model" in capsys.readouterr().err
    assert main(["test", config, str(path), "--engine", "onnxruntime", "--threads", "1"]) == 0
    assert main(["test", config, str(path), "--engine", "onnxruntim"]) == 2
    assert "Did you mean 'onnxruntime'" in capsys.readouterr().err

"""The pictures at the end of a run, and looking again at what a model says."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lbitcls.analysis.curves import read_run
from lbitcls.analysis.figures import new_figure
from lbitcls.apis import init_model, train_classifier
from lbitcls.commands.main import main
from lbitcls.core.hooks.work_dir import PICTURES
from lbitcls.datasets import build_dataset
from lbitcls.deploy import export_model
from lbitcls.models import build_classifier
from lbitcls.tracking import run_pictures as module
from lbitcls.tracking.run_pictures import confusion_of, mixed, predict, read_images
from lbitcls.utils import Config, load_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.workflows.visualizing import visualize

BOARD = dict(interval=5, hooks=[dict(type="TensorboardLoggerHook")])


@pytest.fixture(scope="module")
def trained(tiny_sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of one epoch with its pictures: its config, the summary, the log."""
    work = tmp_path_factory.mktemp("pictures")
    cfg = Config({**tiny_sections, "work_dir": str(work), "total_epochs": 1, "log_config": BOARD})
    summary = train_classifier(cfg)
    return cfg, summary, next(work.glob("*.log")).read_text()


def test_a_run_ends_with_pictures(trained: Any) -> None:
    cfg, _, log = trained
    for name in PICTURES:
        with Image.open(Path(cfg.work_dir) / name) as image:
            assert min(image.size) > 150 and len(image.convert("L").getcolors(256)) > 20
    assert "Figures (" in log and ", ".join(PICTURES) in log


def test_tensorboard_has_them(trained: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(trained[0].work_dir) / "tf_logs"), size_guidance={"images": 0})
    tags = [tag for tag in events.Reload().Tags()["images"] if tag.startswith("pictures/")]
    assert tags == [f"pictures/{Path(name).stem}" for name in PICTURES]
    (event,) = events.Images("pictures/confusion_matrix")
    with Image.open(Path(trained[0].work_dir) / "confusion_matrix.png") as image:
        assert (event.width, event.height) == image.size and event.step == 12


def test_the_confusion_matrix_is_that_of_the_best_weights(trained: Any) -> None:
    cfg, summary, _ = trained
    model = build_classifier(cfg.model)
    load_checkpoint(model, summary["checkpoint"])
    dataset = build_dataset(cfg.data.val)
    found, classes = predict(model.train(), dataset, mixed(dataset, 10_000), torch.device("cpu"), 50)
    confusion = confusion_of(found, classes)
    assert model.training and confusion.shape == (10, 10) and confusion.sum() == len(dataset) == 360
    assert 100 * np.trace(confusion) / 360 == pytest.approx(summary["float"]["top1"])
    assert sorted(p.index for p in found) == list(range(360))
    assert all(p.label == dataset.labels[p.index] for p in found)
    assert all(0 < p.probability <= p.confidence <= 1 for p in found)


@pytest.mark.parametrize("reload_best", [True, False])
@pytest.mark.parametrize("ema", [None, dict(decay=0.2)], ids=["plain", "ema"])
def test_pictures_are_of_the_weights_that_the_log_names(
    reload_best: bool, ema: Any, make_config: Any, monkeypatch: Any
) -> None:
    """The last epoch spoils the model: with `reload_best` no picture shows that, and the log says so before."""
    drawn: dict[str, Any] = {}
    draw_confusion, draw_predictions = module.draw_confusion, module.draw_predictions

    def confusion(counts: np.ndarray, *rest: Any) -> Any:
        drawn["top-1"] = 100 * np.trace(counts) / counts.sum()
        return draw_confusion(counts, *rest)

    def predictions(images: Any, found: Any, *rest: Any) -> Any:
        drawn["predictions"] = found
        return draw_predictions(images, found, *rest)

    monkeypatch.setattr(module, "draw_confusion", confusion)
    monkeypatch.setattr(module, "draw_predictions", predictions)
    cfg = make_config(
        total_epochs=3,
        ema=ema,
        lr_config=dict(policy="step", step=[2], gamma=30.0),
        evaluation=dict(reload_best=reload_best),
        options={"log_config.pictures": True},
    )
    summary = train_classifier(cfg)
    validated = [record["top-1"] for record in read_run(cfg.work_dir).records if record["mode"] == "val"]
    assert validated[-1] < max(validated) == summary["float"]["top1"]
    assert drawn["top-1"] == pytest.approx(max(validated) if reload_best else validated[-1])
    file = summary["checkpoint"] if reload_best else Path(cfg.work_dir) / "latest.pth"
    model = build_classifier(cfg.model)
    load_checkpoint(model, file)
    dataset = build_dataset(cfg.data.val)
    again, _ = predict(model, dataset, mixed(dataset, module.SHOWN), torch.device("cpu"), 128)
    assert [p.predicted for p in drawn["predictions"]] == [p.predicted for p in again]
    log = next(Path(cfg.work_dir).glob("*.log")).read_text()
    assert ("Reloaded the best weights" in log.partition("Figures (")[0]) == reload_best


@pytest.mark.parametrize("frozen", [False, True])
def test_the_pictures_need_no_prediction_after_the_last_validation(
    frozen: bool, make_config: Any, monkeypatch: Any
) -> None:
    """The figures show what the validation found, also from cached features; a run that resumes predicts anew."""
    for name in ("draw_results", "draw_batch", "draw_predictions", "draw_confusion"):
        monkeypatch.setattr(module, name, lambda *given: new_figure(1, 1, arranged=False))
    calls: list[int] = []
    predict_now, counted = module.predict, module.confusion_of
    monkeypatch.setattr(module, "predict", lambda *given: calls.append(1) or predict_now(*given))
    seen: list[np.ndarray] = []
    monkeypatch.setattr(module, "confusion_of", lambda *given: seen.append(counted(*given)) or seen[-1])
    more = {"feature_cache": True, "options": {"model.backbone.frozen": True}} if frozen else {"options": {}}
    more["options"]["log_config.pictures"] = True
    cfg = make_config(total_epochs=2, **more)
    summary = train_classifier(cfg)
    assert not calls and 100 * np.trace(seen[0]) / 360 == pytest.approx(summary["float"]["top1"])
    train_classifier(cfg, resume=True)
    assert calls == [1] and (seen[1] == seen[0]).all()


@pytest.mark.parametrize("to_rgb", [True, False])
def test_images_are_shown_as_they_were(to_rgb: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / "x.png")
    own = dict(type="Normalize", mean=[120, 110, 100], std=[60, 57, 58], to_rgb=to_rgb)
    foreign = dict(type="v2.Normalize", mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    for steps in ([own], [dict(type="ImageToTensor"), foreign], []):
        dataset = build_dataset(dict(type="ImageFolder", data_prefix=str(tmp_path), pipeline=steps))
        shown = read_images(dataset, [1])[1]
        assert shown.shape == (5, 7, 3)
        assert np.abs(shown * 255 - pixels).max() < 0.01
    assert dataset.CLASSES == ("a", "b")


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / kind / "x.png")
    (tmp_path / "a" / "torn.png").write_bytes(b"\x89PNG")
    dataset = build_dataset(dict(type="ImageFolder", data_prefix=str(tmp_path), on_error="skip"))
    assert list(read_images(dataset, range(3))) == [1, 2]
    model = nn.Module()
    model.predict = lambda img: img.mean((2, 3))[:, :2]
    found, _ = predict(model, dataset, [2, 0, 1], torch.device("cpu"), 1)
    assert [p.index for p in found] == [2, 1]


def test_no_pictures(make_config: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    assert not list(Path(cfg.work_dir).glob("*.png"))
    with pytest.raises(ConfigError, match="pictures must be True or False"):
        train_classifier(make_config(options={"log_config.pictures": "no"}))


def test_pictures_without_validation(make_config: Any) -> None:
    cfg = make_config(total_epochs=1, options={"log_config.pictures": True})
    train_classifier(cfg, validate=False)
    assert {path.name for path in Path(cfg.work_dir).glob("*.png")} == {"results.png", "train_batch.png"}


def test_a_failure_to_draw_loses_no_run(make_config: Any, monkeypatch: Any, capsys: Any) -> None:
    def fail(*args: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(module, "draw_batch", fail)
    monkeypatch.setattr(module, "predictions_of", fail)
    cfg = make_config(total_epochs=1, options={"log_config.pictures": True})
    assert "float" in train_classifier(cfg)
    said = capsys.readouterr().out
    assert said.count("Could not draw ") == said.count(": ValueError: no ink") == 3
    (log,) = Path(cfg.work_dir).glob("*.log")
    assert ": results.png" in log.read_text()
    assert (Path(cfg.work_dir) / "summary.json").exists()


@pytest.mark.parametrize("kind", ["batch", "predictions", "errors", "confusion"])
def test_visualize_by_command(kind: str, trained: Any, tmp_path: Path) -> None:
    cfg, summary, _ = trained
    cfg.dump(tmp_path / "tiny.py")
    arguments = ["visualize", kind, str(tmp_path / "tiny.py"), *([] if kind == "batch" else [summary["checkpoint"]])]
    assert main([*arguments, "--num-images", "4", "--out", str(tmp_path / "x.png")]) == 0
    with Image.open(tmp_path / "x.png") as image:
        assert min(image.size) > 150


def test_visualize_in_a_notebook(trained: Any) -> None:
    """The figure is returned, the best weights are found, a file is written only where one is named."""
    cfg = trained[0]
    before = sorted(Path(cfg.work_dir).iterdir())
    figure = visualize("errors", cfg, num_images=3)
    assert sorted(Path(cfg.work_dir).iterdir()) == before
    assert len(figure.axes) == 3 and "the 3 most confident" in figure.texts[0].get_text()
    said = [axes.texts[1].get_text() for axes in figure.axes]
    assert all(text.startswith("true: ") for text in said) and figure._repr_png_()[:4] == b"\x89PNG"
    assert all(axes.texts[2].get_text() for axes in figure.axes)
    visualize("batch", cfg, num_images=3, tensorboard=True)
    assert (Path(cfg.work_dir) / "batch.png").exists()


def test_errors_are_listed_with_their_files(make_config: Any, tmp_path: Path) -> None:
    """The list has every error, most confident first, by path and class names; the figure has the first of them."""
    generator = np.random.default_rng(0)
    for kind in ("ant", "bee"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"a_photo_with_a_long_name_{kind}_{number}.png")
    cfg = make_config()
    cfg.data.val = dict(type="ImageFolder", data_prefix=str(tmp_path / "photos"), pipeline=[])
    model = nn.Module()
    model.predict = lambda img: torch.stack([img.mean((1, 2, 3)), img.std((1, 2, 3)) * 2], 1)
    figure = visualize("errors", cfg, model, num_images=3, out=tmp_path / "out" / "worst.png")
    with (tmp_path / "out" / "worst.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "true_class", "predicted_class", "confidence", "true_class_probability"]
    found, _ = predict(model, build_dataset(cfg.data.val), range(12), torch.device("cpu"), 5)
    assert len(rows) == sum(p.wrong for p in found) > 3
    assert all(Path(row["path"]).parent.name == row["true_class"] != row["predicted_class"] for row in rows)
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == sorted(confidences, reverse=True)
    shown = [axes.texts[2].get_text() for axes in figure.axes]
    assert len(shown) == 3
    assert all(Path(row["path"]).name.endswith(text.lstrip("…")) for row, text in zip(rows, shown))
    visualize("confusion", cfg, model, out=tmp_path / "out" / "confusion.png")
    assert not (tmp_path / "out" / "confusion.csv").exists()


def test_visualize_an_exported_file(trained: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """What an engine says is drawn like what a checkpoint says; here the engine calls it always a 3."""

    class Engine:
        path, name, precision, info = tmp_path / "model.onnx", "openvino", "f32", None

        def predict(self, images: np.ndarray) -> np.ndarray:
            return np.eye(10, dtype=np.float32)[[3] * len(images)]

    opened: list[Any] = []
    monkeypatch.setattr("lbitcls.inference.onnx_model.load", lambda *given: opened.append(given) or Engine())
    figure = visualize("confusion", trained[0], "model.onnx", engine="onnxruntime", threads=1)
    assert opened == [("model.onnx", "onnxruntime", 1)]
    counts = {text.get_position()[0] for text in figure.axes[0].texts}
    assert counts == {3} and "36 of 360 correct" in figure.get_suptitle()


def test_visualize_takes_a_live_model_and_a_grid(trained: Any, tmp_path: Path) -> None:
    """A model at hand says what its checkpoint says, in any mode; the images fill the grid asked for."""
    cfg, summary, _ = trained
    model = init_model(cfg, summary["checkpoint"]).train()
    from_file = visualize("predictions", cfg, summary["checkpoint"], rows=2, cols=3)
    live = visualize("predictions", cfg, model, rows=2, cols=3)
    said = [[text.get_text() for axes in figure.axes for text in axes.texts] for figure in (from_file, live)]
    assert said[0] == said[1] and len(live.axes) == 6 and model.training
    assert len({round(axes.get_position().x0, 3) for axes in live.axes}) == 3
    for kind in ("errors", "confusion"):
        assert visualize(kind, cfg, model, num_images=4).get_axes()
    assert len(visualize("batch", cfg, rows=1, cols=5).axes) == 5
    assert len(visualize("predictions", cfg, torch.nn.Flatten(), num_images=3, rows=2).axes) == 3  # any module
    exported = tmp_path / "model.onnx"
    export_model(init_model(cfg, summary["checkpoint"]), exported, input_shape=(1, 8, 8))
    opened = visualize("predictions", cfg, init_model(cfg, exported, engine="onnxruntime"), rows=2, cols=3)
    assert [text.get_text() for axes in opened.axes for text in axes.texts] == said[0]
    with pytest.raises(ConfigError, match="already loaded"):
        visualize("predictions", cfg, model, engine="openvino")
    with pytest.raises(ConfigError, match="--num-images must be at most 4 for 2 rows of 2 images; got 5"):
        visualize("batch", cfg, num_images=5, rows=2, cols=2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(kind="error"), ConfigError, "Did you mean 'errors'"),
        (dict(kind="batch", num_images=0), ConfigError, "≥ 1; got 0"),
        (dict(kind="batch", cols=-1), ConfigError, "cols must be an integer ≥ 1; got -1"),
        (dict(kind="batch", out="x.txt"), ConfigError, "a figure's file must be"),
        (dict(kind="predictions"), CheckpointError, "name the checkpoint"),
        (dict(kind="batch", split="training"), ConfigError, "data.training"),
    ],
)
def test_what_cannot_be_shown(arguments: dict[str, Any], error: type, message: str, make_config: Any) -> None:
    with pytest.raises(error, match=message):
        visualize(cfg=make_config(work="nowhere"), **arguments)


def test_analyze_by_command(trained: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    work = trained[0].work_dir
    monkeypatch.setenv("COLUMNS", "160")
    out = str(tmp_path / "x.svg")
    assert main(["analyze", work, f"{work}/log.jsonl", "--keys", "loss", "--x", "images", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "time per iteration" in said and "ms (epoch 1)" in said and f"{work}/log.jsonl" in said.replace("\n", "")
    assert "<svg" in Path(out).read_text()
    assert main(["analyze", work, "--names", "a", "b", "--out", out]) == 2
    assert main(["analyze", str(tmp_path / "none"), "--out", out]) == 1
    assert "log.jsonl" in capsys.readouterr().err


def test_images_are_counted(trained: Any) -> None:
    counts = [record["images"] for record in read_run(trained[0].work_dir).records]
    assert counts == [5 * 128, 10 * 128, 1437, 1437]


def test_images_are_counted_whatever_makes_a_step(make_config: Any) -> None:
    """Batches whose gradients are added up are images seen like others, and the curve of a test loss has them too."""
    cfg = make_config(optimizer_config=dict(grad_clip=None, cumulative_iters=4))
    train_classifier(cfg)
    run = read_run(cfg.work_dir)
    assert run.series("loss", "val", "images")[0].tolist() == [1437, 2 * 1437]
    assert run.series("loss", "train", "images")[0].tolist() == [640, 1280, 1437, 2077, 2717, 2874]


def test_a_checkpoint_may_stand_after_the_options(trained: Any, tmp_path: Path) -> None:
    cfg, summary, _ = trained
    cfg.dump(tmp_path / "tiny.py")
    target = str(tmp_path / "x.png")
    given = ["visualize", "predictions", "--num-images", "2", str(tmp_path / "tiny.py"), "--out", target]
    assert main([*given, summary["checkpoint"]]) == 0 and Path(target).exists()
    with pytest.raises(SystemExit):
        main([*given, summary["checkpoint"], "too many"])

"""`lbitcls infer`: files and folders, what it prints and writes, and images that cannot be read."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from calls import ROOT, Delivered, command, on_terminal
from PIL import Image

from lbitcls.apis import inference_model, init_model
from lbitcls.commands.main import main
from lbitcls.inference import api as inference
from lbitcls.utils.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with four images, one of them in a folder below, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "deep/c.png", "d e.bmp")):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("form", ["checkpoint", "exported"])
def test_a_folder(form: str, delivered: Delivered, photos: Path, tmp_path: Path, capsys: Any) -> None:
    file, out = str(getattr(delivered, form)), tmp_path / "found.json"
    given = ["infer", str(delivered.config), file, str(photos), "--json", str(out), "--topk", "2", "--batch-size", "3"]
    assert main(given) == 0
    records = json.loads(out.read_text())
    assert [Path(record["path"]).name for record in records] == ["a.png", "b.jpg", "d e.bmp", "c.png"]
    expected = inference_model(init_model(delivered.config, file), [r["path"] for r in records], topk=2)
    for record, result in zip(records, expected, strict=True):
        assert [e["pred_class"] for e in record["topk"]] == [e["pred_class"] for e in result["topk"]]
        assert record["pred_score"] == pytest.approx(result["pred_score"], abs=1e-3)
    lines = capsys.readouterr().out.splitlines()
    first, second = records[0]["topk"]
    said = ", ".join(f"{e['pred_class']} {100 * e['pred_score']:.1f} %" for e in (first, second))
    assert f"{records[0]['path']}: {said}" in lines


@pytest.mark.parametrize("topk", [1, 2])
def test_a_folder_of_labelled_pictures(
    topk: int, delivered: Delivered, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    """One picture an image, none of which replaces another, and a table that says the same as the JSON file."""
    Image.new("RGB", (30, 20)).save(photos / "A.jpg")  # beside a.png and deep/c.png
    Image.new("RGB", (30, 20)).save(photos / "c.tif")
    out, found = tmp_path / "new" / "out", tmp_path / "found.json"
    given = ["infer", str(delivered.config), str(delivered.exported), str(photos), str(tmp_path / "none.jpg")]
    arguments = [*given, "--topk", str(topk), "--out", str(out), "--json", str(found)]
    assert main(arguments) == 1
    assert str(out / "predictions.csv") in capsys.readouterr().out
    records = json.loads(found.read_text())
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records) == 7 and rows[-1]["error"] and not rows[-1]["labeled"]
    for row, record in zip(rows[:-1], records[:-1], strict=True):
        assert (row["path"], row["class"]) == (record["path"], record["pred_class"])
        assert float(row["score"]) == pytest.approx(record["pred_score"], abs=1e-6) and not row["error"]
        assert topk == 1 or row["class_2"] == record["topk"][1]["pred_class"]
        with Image.open(out / row["labeled"]) as image:
            assert min(image.size) > 100
    names = [row["labeled"] for row in rows[:-1]]
    assert len({name.lower() for name in names}) == 6 and sorted(os.listdir(out)) == sorted([*names, "predictions.csv"])
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err and before == {path: path.read_bytes() for path in out.iterdir()}


def test_images_that_cannot_be_read(delivered: Delivered, photos: Path, tmp_path: Path, capsys: Any) -> None:
    """They are reported in their place, the others go on, and the exit code says that something is amiss."""
    narrow = tmp_path / "narrow.png"
    Image.new("L", (20_000, 1)).save(narrow)
    images = [tmp_path / "missing.jpg", photos / "a.png", photos / "notes.txt", narrow]
    given = ["infer", str(delivered.config), str(delivered.exported), *map(str, images)]
    assert main([*given, "--json", str(tmp_path / "found.json")]) == 1
    records = json.loads((tmp_path / "found.json").read_text())
    assert [sorted(record) for record in records] == [
        ["error", "path"],
        ["path", "pred_class", "pred_label", "pred_score"],
        ["error", "path"],
        ["path", "pred_class", "pred_label", "pred_score"],
    ]
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 2 and str(photos / "a.png") in captured.out
    *said, last = captured.err.splitlines()
    assert said == [records[0]["error"], records[2]["error"]]
    assert said[0] == f"{tmp_path / 'missing.jpg'}: no such file."
    assert last == "DataError: 2 of 4 images could not be used; the messages above say why."


@pytest.mark.parametrize("place", ["-", "/dev/stdout"])
@pytest.mark.parametrize("into", ["pipe", "file"])
def test_json_on_standard_output(place: str, into: str, delivered: Delivered, photos: Path, tmp_path: Path) -> None:
    call = command(
        ROOT / "tools" / "infer.py", delivered.config, delivered.exported, photos / "a.png", photos / "no.png"
    )
    call["args"] += ["--json", place]
    with (tmp_path / "found.json").open("w+") as file:
        stdout = subprocess.PIPE if into == "pipe" else file
        done = subprocess.run(**call, stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False)
        file.seek(0)
        records = json.loads(done.stdout if into == "pipe" else file.read())
    assert done.returncode == 1 and [sorted(record)[0] for record in records] == ["path", "error"]
    assert f"{photos / 'a.png'}: {records[0]['pred_class']} " in done.stderr
    assert "no.png: no such file" in done.stderr


def test_json_to_a_pipe_with_a_name(delivered: Delivered, photos: Path, tmp_path: Path, capsys: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    given = ["infer", str(delivered.config), str(delivered.exported), str(photos / "a.png")]
    end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert main([*given, "--json", str(tmp_path / "pipe")]) == 0
    records = json.loads(os.read(end, 65536))
    os.close(end)
    assert f"{photos / 'a.png'}: {records[0]['pred_class']} " in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*pipe*")] == ["pipe"] and (tmp_path / "pipe").is_fifo()


def test_a_name_that_would_clear_the_screen(delivered: Delivered, tmp_path: Path, capsys: Any) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "\x1b[2J.png")
    (tmp_path / "\x1b[3J.png").write_bytes(b"x")
    main(["infer", str(delivered.exported), str(tmp_path)])
    said = capsys.readouterr()
    assert r"\x1b[2J.png: " in said.out and said.err.count(r"\x1b[3J.png: ") == 1 and "\x1b" not in said.out + said.err


def test_a_name_that_is_no_text(delivered: Delivered, tmp_path: Path, capsys: Any) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Image.new("RGB", (4, 4)).save(path)
    out = tmp_path / "found.json"
    assert main(["infer", str(delivered.config), str(delivered.exported), path, "--json", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))[0]["path"] == path
    assert "\\udcff.png: digit " in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["infer", "test", "verify"])
def test_large_photos_are_read_silently_and_larger_ones_refused(
    verb: str, delivered: Delivered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Pillow warns of images with more than half of the pixels that it refuses."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    photo, model = tmp_path / "digit 1" / "large.png", str(delivered.exported)
    photo.parent.mkdir()
    given = {"verify": [model, "--images", str(tmp_path)], "infer": [model, str(photo)], "test": [model, str(tmp_path)]}
    for size, code in (((100, 60), 0), ((200, 100), 1)):
        Image.new("RGB", size).save(photo)
        assert main([verb, *given[verb]]) == code
        captured = capsys.readouterr().err
        assert ("exceeds limit" in captured) == bool(code) and "Traceback" not in captured
    assert f"{photo}: Image size (20000 pixels) exceeds limit of 10000 pixels. Make it smaller" in captured


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["CONFIG", "no.onnx", "a.png"], 1, "there is no ONNX file no.onnx"),
        (["CONFIG", "no.pth", "a.png"], 1, "there is no checkpoint no.pth"),
        (["no.py", "MODEL", "a.png"], 2, "there is no config file"),
        (["CONFIG", "MODEL", "EMPTY"], 1, "contains no images (.bmp, "),
        (["CONFIG", "MODEL", "a.png", "--topk", "0"], 2, "topk must be an integer ≥ 1; got 0"),
        (["CONFIG", "MODEL", "a.png", "--batch-size", "0"], 2, "batch_size must be an integer ≥ 1; got 0"),
        (["CONFIG", "MODEL", "a.png", "--engine", "tensorflow"], 2, "there is no engine named 'tensorflow'"),
        (["CONFIG", "MODEL", "a.png", "--device", "cuda"], 2, "runs on the CPU; remove device='cuda'"),
        (["CONFIG", "MODEL", "a.png", "--json", "a.png"], 2, "--json a.png would replace a file"),
        (["CONFIG", "MODEL", "a.png", "--options", "data.tset=1"], 2, "'data.tset'. Did you mean 'test'"),
    ],
)
def test_mistakes(
    arguments: list[str], code: int, message: str, delivered: Delivered, tmp_path: Path, capsys: Any
) -> None:
    words = {"CONFIG": str(delivered.config), "MODEL": str(delivered.exported), "EMPTY": str(tmp_path)}
    assert main(["infer", *(words.get(argument, argument) for argument in arguments)]) == code
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and "pred_" not in captured.out


def test_the_options_of_the_config_count(delivered: Delivered, photos: Path, capsys: Any) -> None:
    given = ["infer", str(delivered.config), str(delivered.exported), str(photos / "a.png")]
    assert main(given) == 0
    plain = capsys.readouterr().out
    assert main([*given, "--options", "data.test.pipeline.0.mean=[0.9]"]) == 0
    assert capsys.readouterr().out != plain


def test_a_first_prediction_imports_no_torch(delivered: Delivered, photos: Path) -> None:
    code = (
        "import sys; from lbitcls.commands.main import main; code = main(sys.argv[1:]);"
        "print(code, {'torch', 'torchvision', 'matplotlib'} & set(sys.modules))"
    )
    call = command("-c", code, "infer", delivered.config, delivered.exported, photos / "b.jpg")
    done = subprocess.run(**call, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 set()" and "b.jpg: digit " in done.stdout


def test_progress_on_a_terminal(delivered: Delivered, photos: Path) -> None:
    arguments = [delivered.config, delivered.exported, photos, photos / "none.jpg"]
    code, shown, errors = on_terminal(ROOT / "tools" / "infer.py", *arguments)
    assert code == 1
    assert "images" in shown and "100%" in shown and "deep/c.png: digit " in shown
    assert "none.jpg: no such file" in errors + shown
    assert "Traceback" not in errors


def test_a_model_that_diverged(delivered: Delivered, photos: Path, tmp_path: Path, capsys: Any) -> None:
    """No score is "nan %", no exit code 0, and nothing in JSON is NaN."""
    bad, out = tmp_path / "bad.pth", tmp_path / "found.json"
    content = torch.load(delivered.checkpoint, weights_only=True)
    content["state_dict"]["head.fc.weight"][1, 2] = float("nan")
    torch.save(content, bad)
    assert main(["infer", str(delivered.config), str(bad), str(photos / "a.png"), "--json", str(out)]) == 1
    [record] = json.loads(out.read_text())
    assert "the model's scores for this image are NaN or infinite" in record["error"]
    assert "nan %" not in capsys.readouterr().out
    metrics = tmp_path / "metrics.json"
    assert main(["test", str(delivered.config), str(bad), "--out", str(metrics)]) == 1
    assert "the logits of" in capsys.readouterr().err and not metrics.exists()


def test_a_picture_that_the_pipeline_makes_infinite_is_singled_out(monkeypatch: Any) -> None:
    class Predictor:
        num_classes = 2

        @staticmethod
        def prepare(picture: Any) -> np.ndarray:
            return np.full((1, 2, 2), np.inf if picture == "bad" else 1.0, np.float32)

        @staticmethod
        def scores(images: np.ndarray) -> np.ndarray:
            assert np.isfinite(images).all()
            return np.tile(np.float32([0.25, 0.75]), (len(images), 1))

    monkeypatch.setattr(inference, "_predictor", lambda model: Predictor)
    found = list(inference.predict_pictures(SimpleNamespace(CLASSES=None), ["good", "bad", "good"]))
    assert [isinstance(result, DataError) for result in found] == [False, True, False]
    assert "the test pipeline returns NaN or infinite values for this image" in str(found[1])

"""Models that need no config: what an exported model and a checkpoint record suffices for infer, test and benchmark."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from calls import Delivered, command
from PIL import Image

from lbitcls.apis import init_model
from lbitcls.apis import test_classifier as classify
from lbitcls.commands.main import main
from lbitcls.datasets.digits import Digits
from lbitcls.deploy.runtime.metadata import SEAL, ModelInfo, write_info
from lbitcls.inference.self_described import recorded_config, sort_arguments
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError

FORMS = ("exported", "checkpoint")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test digits as files, in folders named after the delivered model's classes."""
    folder, data = tmp_path_factory.mktemp("digits"), Digits(split="test")
    for index, label in enumerate(data.labels):
        path = folder / f"digit {label}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(data.images[index, 0].numpy()).save(path)
    return folder


def changed(delivered: Delivered, form: str, folder: Path, config: str | None) -> Path:
    """A copy of a delivered file whose recorded config is `config`."""
    path = folder / Path(getattr(delivered, form)).name
    if form == "checkpoint":
        content = torch.load(delivered.checkpoint, weights_only=True)
        content["meta"]["config"] = config
        torch.save(content, path)
        return path
    model = onnx.load(str(delivered.exported))
    info = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "lbitcls"))
    info["input_shape"] = tuple(info["input_shape"])
    write_info(model, ModelInfo(**{**info, "config": config or ""}))
    assert SEAL not in {entry.key for entry in model.metadata_props}
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_infer_says_the_same_without_the_config(form: str, delivered: Delivered, digits: Path, capsys: Any) -> None:
    file, image = str(getattr(delivered, form)), str(digits / "digit 3")
    assert main(["infer", str(delivered.config), file, image, "--device", "cpu"]) == 0
    expected = [line for line in capsys.readouterr().out.splitlines() if ".png: digit " in line]
    assert main(["infer", file, image]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if ".png: digit " in line] == expected
    assert len(expected) > 20
    assert main(["infer", file, image, "--options", "data.test.pipeline.0.mean=[0.9]"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if ".png: digit " in line] != expected


def test_the_folder_of_a_page_is_a_model(delivered: Delivered, digits: Path, tmp_path: Path, capsys: Any) -> None:
    """Without a browser: the ONNX file inside is run, as if it had been named."""
    page, out = tmp_path / "page", tmp_path / "certificates.json"
    page.mkdir()
    shutil.copy(delivered.exported, page / "model.onnx")
    said = []
    for model in (page, page / "model.onnx"):
        assert main(["infer", str(model), str(digits / "digit 3")]) == 0
        assert main(["test", str(model), str(digits)]) == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if "digit" in line or "top-1" in line])
    assert said[0] == said[1] and len(said[0]) > 20
    assert init_model(None, page).CLASSES == init_model(None, delivered.exported).CLASSES
    verify = ["verify", str(page), "--engine", "openvino", "onnxruntime", "--images", str(digits), "--json", str(out)]
    assert main(verify) == 0
    assert [Path(one["file"]) for one in json.loads(out.read_text())] == [page / "model.onnx"]
    (page / "model.onnx").unlink()
    capsys.readouterr()
    assert main(["infer", str(page), str(digits)]) == 2
    assert "must be an exported model (.onnx, .tflite, .pte, the folder of a page)" in capsys.readouterr().err


@pytest.mark.parametrize("form", FORMS)
def test_the_recorded_data_and_a_folder_of_it_give_the_same_metrics(
    form: str, delivered: Delivered, digits: Path, tmp_path: Path
) -> None:
    file, out = getattr(delivered, form), tmp_path / "metrics.json"
    expected = classify(delivered.config, file)
    assert main(["test", str(file), "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == expected
    assert main(["test", str(file), str(digits), "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    found = dict(written)
    classes = [[row["recall"] for row in results.pop("classes")] for results in (found, expected)]
    assert found == pytest.approx(expected) and found["total"] == 360 and classes[0] == pytest.approx(classes[1])
    assert main(["test", str(delivered.config), str(file), str(digits), "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == written


@pytest.mark.parametrize("form", FORMS)
def test_photos_of_any_size_in_some_of_the_classes(
    form: str, delivered: Delivered, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(0)
    for label in (2, 7):
        for number in range(3):
            path = tmp_path / f"digit {label}" / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (draw.randrange(9, 90), draw.randrange(9, 90)), (number, 9, label)).save(path)
    rows = tmp_path / "rows.jsonl"
    assert main(["test", str(getattr(delivered, form)), str(tmp_path), "--predictions", str(rows)]) == 0
    assert "has no images of 8 classes: 'digit 0', 'digit 1', 'digit 3'" in caplog.text
    assert "another test pipeline" not in caplog.text
    labels = [json.loads(line)["label"] for line in rows.read_text().splitlines()]
    assert labels == [2, 2, 2, 7, 7, 7]  # the file's labels, not those of two sorted folders


def test_folders_that_are_not_the_classes(delivered: Delivered, digits: Path, tmp_path: Path, capsys: Any) -> None:
    model = str(delivered.exported)
    shutil.copytree(digits / "digit 1", tmp_path / "set" / "diget 1")
    for folder, code, message in (
        (tmp_path / "set", 1, "not named after classes of"),
        (tmp_path / "none", 1, "there is no folder"),
        (digits / "digit 1", 1, "has no class folders"),
    ):
        assert main(["test", model, str(folder)]) == code
        captured = capsys.readouterr()
        assert message in captured.err and "Traceback" not in captured.err and "correct" not in captured.out
    assert main(["test", model, str(tmp_path / "set")]) == 1
    assert "'diget 1'. Did you mean 'digit 1'?" in capsys.readouterr().err


def test_a_misspelled_file_or_folder_gets_the_nearest_name(delivered: Delivered, tmp_path: Path, capsys: Any) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(delivered.exported, model)
    (tmp_path / "photos").mkdir()
    for arguments, code, name in (
        ([str(tmp_path / "model.onx"), "photos"], 2, "model.onnx"),
        ([str(model), str(tmp_path / "potos")], 1, "photos"),
    ):
        assert main(["test", *arguments]) == code
        assert f"Did you mean '{name}'?" in capsys.readouterr().err


def test_benchmark_needs_the_file_alone(delivered: Delivered, capsys: Any) -> None:
    assert main(["benchmark", str(delivered.exported), "--repeats", "1", "--batch", "1"]) == 0
    assert "W4A4" in capsys.readouterr().out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "text", ["import os\nos.mkdir('ran')", "model = __import__('os').mkdir('ran')", "model = [os.mkdir('ran')]", "(("]
)
def test_a_recorded_config_is_never_executed(
    form: str, text: str, delivered: Delivered, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = changed(delivered, form, tmp_path, text)
    assert main(["test", str(file)]) == 1
    assert f"the config in {file} cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_recorded_config_imports_nothing(
    form: str, delivered: Delivered, tmp_path: Path, capsys: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_parts_of_a_file.py").write_text("import os\nos.mkdir('ran')\n")
    text = delivered.config.read_text() + "\ncustom_imports = dict(imports=['own_parts_of_a_file'])\n"
    file = changed(delivered, form, tmp_path, text)
    code = main(["test", str(file)])
    said = caplog.text if form == "exported" else capsys.readouterr().err
    assert "own_parts_of_a_file" in said and not (tmp_path / "ran").exists()
    assert code == (2 if form == "checkpoint" else 0)  # the engine needs no part of the model


@pytest.mark.parametrize("form", FORMS)
def test_a_file_without_a_config(form: str, delivered: Delivered, digits: Path, tmp_path: Path, capsys: Any) -> None:
    file = changed(delivered, form, tmp_path, None)
    assert main(["test", str(file)]) == 1
    assert "does not record the config that it belongs to; give the config" in capsys.readouterr().err
    code = main(["test", str(file), str(digits)])
    captured = capsys.readouterr()
    if form == "exported":  # it records its pipeline besides
        assert code == 0 and "/ 360" in captured.out
    else:
        assert code == 1 and "does not record how images are prepared" in captured.err


def test_settings_of_the_machine_that_trained_are_left_out(delivered: Delivered, tmp_path: Path) -> None:
    cfg = Config.fromfile(delivered.config)
    cfg.device, cfg.num_threads = "cuda:7", 64
    file = changed(delivered, "checkpoint", tmp_path, cfg.pretty_text)
    recorded = recorded_config(file)
    assert "device" not in recorded and "num_threads" not in recorded and recorded.model == cfg.model
    assert init_model(None, file).CLASSES[0] == "digit 0"
    with pytest.raises(ConfigError, match="no model is given"):
        init_model(None)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        init_model(None, tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        (
            "infer",
            ["photo.jpg", "MODEL"],
            "the first file must be an exported model (.onnx, .tflite, .pte, the folder of a page),",
        ),
        ("infer", ["MODEL", "CONFIG", "photo.jpg"], "stands after the model"),
        ("infer", ["CONFIG", "MODEL"], "no image is given"),
        ("test", ["MODEL", "CONFIG"], "stands after the model"),
        ("test", ["MODEL", "a", "b"], "one folder at most; got a b"),
        ("test", ["a_folder"], "the first file must be"),
        ("test", ["MODEL", "--options", "data.tset=1"], "'data.tset'. Did you mean"),
    ],
)
def test_mistakes(verb: str, arguments: list[str], message: str, delivered: Delivered, capsys: Any) -> None:
    words = {"CONFIG": str(delivered.config), "MODEL": str(delivered.exported)}
    assert main([verb, *(words.get(word, word) for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_the_first_suffix_decides() -> None:
    for first in ("a.py", "a.YAML", "b.json"):
        given = sort_arguments([first, "x.pth", "y"], "")
        assert (given.config, given.model, given.rest) == (first, "x.pth", ["y"])
    for first in ("a.onnx", "b.PTH", "c.ckpt"):
        given = sort_arguments([first, "y.jpg"], "")
        assert (given.config, given.model, given.rest) == (None, first, ["y.jpg"])


def test_infer_without_a_config_imports_no_torch(delivered: Delivered, digits: Path) -> None:
    code = (
        "import sys; from lbitcls.commands.main import main; code = main(sys.argv[1:]);"
        "print(code, {'torch', 'torchvision', 'matplotlib'} & set(sys.modules))"
    )
    call = command("-c", code, "infer", delivered.exported, digits / "digit 0")
    done = subprocess.run(**call, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 set()" and ".png: digit " in done.stdout

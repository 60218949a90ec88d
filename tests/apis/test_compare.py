"""`lbitcls compare` on the digits: files in the right and in the wrong place, images of all kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.analysis.advice import Advice, special_layers
from lbitcls.commands.main import main
from lbitcls.datasets import build_dataset
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.settings.sections import read_settings
from lbitcls.utils import Config
from lbitcls.utils.checkpoint import read_checkpoint, save_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError
from lbitcls.workflows.comparing import compare_checkpoints, find_images, read_batches

LSQ = dict(
    type="mTransformerV2",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4), Linear=dict(type="LSQLinear", num_bit_w=4, num_bit_a=4)
    ),
)


@pytest.fixture(scope="module")
def files(tiny_sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A float and a quantized config and checkpoint, and digits as files in folders named after their classes."""
    folder = tmp_path_factory.mktemp("compare")
    Config({**tiny_sections, "work_dir": str(folder / "run")}).dump(folder / "float.py")
    both = Config({**tiny_sections, "quant_transformer": LSQ, "kernels": "plain", "work_dir": str(folder / "run")})
    both.dump(folder / "int.py")
    options = ["--options", "total_epochs=2", "+calibration.epoch=1"]
    assert main(["train", str(folder / "int.py"), *options]) == 0
    dataset = build_dataset(tiny_sections["data"]["test"])
    for index in range(30):
        path = folder / "images" / "some" / str(dataset.labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.images[index, 0].numpy()).save(path)
    paths = {
        "float.py": folder / "float.py",
        "int.py": folder / "int.py",
        "phase.pth": folder / "run" / "best_float_top-1.pth",
        "int.pth": folder / "run" / "latest.pth",
        "images": folder / "images",
    }
    state = read_checkpoint(paths["phase.pth"])
    plain = {k: v for k, v in state["state_dict"].items() if "_quantizer." not in k}
    torch.save({"meta": {"CLASSES": state["meta"]["CLASSES"]}, "state_dict": plain}, folder / "float.pth")
    paths["float.pth"] = folder / "float.pth"
    return {name: str(path) for name, path in paths.items()}


def in_order(files: dict[str, str], *names: str) -> list[str]:
    return [files.get(name, name) for name in names]


def test_the_command_writes_the_page_and_the_figures(files: Any, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "new" / "report.html"
    given = in_order(files, "images", "float.py", "int.py", "float.pth", "int.pth")
    assert main(["compare", *given, "--device", "cpu", "--save-path", str(page), "--num-images", "20"]) == 0
    assert "The output depends most on the quantizers of" in capsys.readouterr().out
    figures = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert figures["images"] == 20 and figures["labelled"] and figures["image_shape"] == [1, 8, 8]
    assert figures["about"]["float checkpoint"] == files["float.pth"]
    assert figures["about"]["title"] == "int beside float"
    assert [layer["name"] for layer in figures["layers"]] == ["backbone.conv1", "backbone.conv2", "head.fc"]
    assert figures["basis"] == "quantized" and figures["retrained"] and figures["float_top1"] is not None
    assert "int beside float" in page.read_text(encoding="utf-8")


def test_two_models_of_one_config_are_told_apart(files: Any, tmp_path: Path) -> None:
    given = in_order(files, "int.py", "int.py", "phase.pth", "int.pth")
    compare_checkpoints(files["images"], given, out=tmp_path / "a.html", num_images=3)
    about = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["about"]
    assert about["title"] == "latest.pth beside best_float_top-1.pth"
    copy = tmp_path / "latest.pth"
    copy.write_bytes(Path(files["phase.pth"]).read_bytes())
    compare_checkpoints(files["images"], [*given[:2], str(copy), given[3]], out=tmp_path / "b.html", num_images=3)
    about = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))["about"]
    assert about["title"] == f"{files['int.pth']} beside {copy}"


def test_one_model_by_the_command(files: Any, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "one.html"
    given = in_order(files, "images", "float.py", "float.pth")
    assert main(["compare", *given, "--float-only", "--num-images", "3", "--save-path", str(page)]) == 0
    assert f"Wrote {page} and {page.with_suffix('.json')}" in capsys.readouterr().out


def test_figures_are_the_same_each_time(files: Any, tmp_path: Path) -> None:
    given = in_order(files, "float.py", "int.py", "float.pth", "int.pth")
    for name in ("a", "b"):
        compare_checkpoints(files["images"], given, out=tmp_path / f"{name}.html", num_images=9)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_the_models_are_those_that_test_sees(files: Any, tmp_path: Path) -> None:
    """Accuracy on all digits of the test set as `lbitcls test` measures it."""
    cfg = Config.fromfile(files["int.py"])
    dataset = build_dataset(cfg.data.test)
    for index in range(len(dataset)):
        path = tmp_path / "digits" / str(dataset.labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.images[index, 0].numpy()).save(path)
    out = tmp_path / "m.json"
    assert main(["test", files["int.py"], files["int.pth"], "--out", str(out)]) == 0
    given = in_order(files, "int.py", "int.pth")
    analysis = compare_checkpoints(tmp_path / "digits", given, out=tmp_path / "x.html", num_images=1000)
    assert analysis.top1 is not None and analysis.images == 360
    assert 100 * analysis.top1 == pytest.approx(json.loads(out.read_text())["top-1"])


def test_a_float_phase_and_one_config_serve_as_the_float_model(files: Any, tmp_path: Path, capsys: Any) -> None:
    """A run that was float at first leaves its best float weights; its config names the quantizers."""
    pairs = [("float.py", "float.pth"), ("int.py", "phase.pth")]
    seen = []
    for number, (config, checkpoint) in enumerate(pairs):
        given = in_order(files, config, "int.py", checkpoint, "int.pth")
        seen.append(compare_checkpoints(files["images"], given, out=tmp_path / f"{number}.html", num_images=5))
    assert seen[0] == seen[1]
    said = "".join(capsys.readouterr())
    assert "its quantizers, which are disabled, are left out" in said and "WARNING" not in said


def test_one_model(files: Any, tmp_path: Path) -> None:
    alone = compare_checkpoints(
        files["images"], in_order(files, "int.py", "int.pth"), out=tmp_path / "a.html", num_images=5
    )
    assert alone.reference == "own" and alone.basis == "quantized"
    plain = compare_checkpoints(
        files["images"],
        in_order(files, "int.py", "phase.pth"),
        out=tmp_path / "b.html",
        num_images=5,
        float_only=True,
    )
    assert plain.reference is None and plain.everything is None


@pytest.mark.parametrize(
    ("given", "flags", "error", "message"),
    [
        (["float.py", "int.py", "float.pth", "float.pth"], {}, CheckpointError, "but it has float weights"),
        (["float.py", "int.py", "float.pth", "phase.pth"], {}, CheckpointError, "its quantizers are off"),
        (["float.py", "int.py", "int.pth", "int.pth"], {}, CheckpointError, "but is a quantized model's"),
        (["float.py", "int.py", "int.pth", "float.pth"], {}, CheckpointError, "The order is IMAGES FLOAT_CONFIG"),
        (["int.py", "float.py", "float.pth", "int.pth"], {}, ConfigError, "--float-only"),
        (["float.pth", "int.pth", "float.py", "int.py"], {}, ConfigError, "float.pth is in the place of a config"),
        (["float.py", "int.py", "float.pth"], {}, ConfigError, "got 3 files"),
        (
            ["float.py", "int.py", "float.pth", "int.pth"],
            dict(float_only=True),
            ConfigError,
            "--float-only needs one model",
        ),
        (["float.py", "int.py", "none.pth", "int.pth"], {}, CheckpointError, "there is no checkpoint none.pth"),
        (["float.py", "int.py", "float.pth", "int.pth"], dict(num_images=0), ConfigError, "≥ 1; got 0"),
        (["float.py", "int.py", "float.pth", "int.pth"], dict(out="x.png"), ConfigError, r"\*.html; got 'x.png'"),
        (["float.py", "int.py", "float.pth", "int.pth"], dict(device="tpu"), ConfigError, "a device must be"),
    ],
)
def test_mistakes(
    files: Any, given: list[str], flags: dict[str, Any], error: type, message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        compare_checkpoints(files["images"], in_order(files, *given), **flags)
    assert list(tmp_path.iterdir()) == []


def test_device_and_page_follow_the_files_as_in_the_original(
    files: Any, run_tool: Any, tmp_path: Path, capsys: Any
) -> None:
    given = in_order(files, "images", "float.py", "int.py", "float.pth", "int.pth")
    page = tmp_path / "page.html"
    done = run_tool("model_analysis_tool", *given, "gpu:0", page, "--num-images", 3)
    assert done.returncode == 0, done.stderr
    assert page.exists() and page.with_suffix(".json").exists()
    assert f"Wrote {page} and {page.with_suffix('.json')}" in done.stdout and "\x1b[" not in done.stdout
    assert torch.cuda.is_available() or "Running on the CPU instead of gpu:0: this machine has no GPU." in done.stderr
    for extra, message in (
        (["here.html"], "(its index from 0); got 'here.html'"),
        (["cpu", "a.html", "b.html"], "got 7 files"),
        (["cpu", "a.html", "--device", "0"], "the device is given twice, as cpu and as 0"),
    ):
        assert main(["compare", *given, *extra]) == 2 and message in capsys.readouterr().err


def test_mistakes_are_answered_without_a_traceback(files: Any, tmp_path: Path, capsys: Any) -> None:
    given = in_order(files, "float.py", "int.py", "float.pth", "float.pth")
    assert main(["compare", files["images"], *given, "--save-path", str(tmp_path / "x.html")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("CheckpointError: ") and "Traceback" not in said


def test_another_architecture_is_refused(files: Any, tiny_sections: dict[str, Any], tmp_path: Path) -> None:
    wide = {**tiny_sections, "model": {**tiny_sections["model"], "backbone": dict(type="TinyNet", width=4)}}
    wide["model"]["head"] = {**wide["model"]["head"], "in_channels": 8}
    Config(wide).dump(tmp_path / "wide.py")
    save_checkpoint(build_classifier(wide["model"]), tmp_path / "wide.pth")
    given = in_order(files, str(tmp_path / "wide.py"), "int.py", str(tmp_path / "wide.pth"), "int.pth")
    with pytest.raises(ConfigError, match=r"differ in architecture: the weight of backbone.conv1 is \(4, 1, 3, 3\)"):
        compare_checkpoints(files["images"], given, out=tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


# Images


def test_images_are_found(files: Any, tmp_path: Path) -> None:
    found = find_images(files["images"], 12)
    assert len(set(found)) == 12 and found == find_images(files["images"], 12) != sorted(found)
    assert find_images(found[0], 5) == [found[0]]
    with pytest.raises(DataError, match="Did you mean 'images'"):
        find_images(Path(files["images"]).with_name("image"), 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"contains no images \(.bmp"):
        find_images(tmp_path / "empty", 5)


def test_photos_go_to_a_model_of_small_gray_images(files: Any, tmp_path: Path) -> None:
    """Any size and colour; those that cannot be read are left out; without known folders there are no labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    Image.fromarray(pixels[:9, :, 0]).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    settings = read_settings(files["int.py"])
    model = build_classifier(settings.model)
    paths = sorted(str(path) for path in tmp_path.iterdir())
    batches, labels = read_batches(paths, tmp_path, settings, model, ("0", "1"))
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, 8, 8)] and labels is None
    with pytest.raises(DataError, match="cannot read this image"):
        read_batches(paths[2:], Path(paths[2]), settings, model, None)
    with pytest.raises(DataError, match="none of the 2 images can be read"):
        read_batches(paths[2:] * 2, tmp_path, settings, model, None)


def test_digits_in_files_are_the_digits_of_the_data_set(files: Any) -> None:
    cfg = Config.fromfile(files["int.py"])
    root = Path(files["images"])
    paths = find_images(root, 30)
    names = tuple(map(str, range(10)))
    (batch,), labels = read_batches(paths, root, read_settings(cfg), build_classifier(cfg.model), names)
    dataset = build_dataset(cfg.data.test)
    assert labels is not None
    for image, label, path in zip(batch, labels, paths, strict=True):
        sample = dataset[int(Path(path).stem)]
        assert torch.equal(image, sample["img"]) and label == sample["gt_label"]


def test_configs_that_prepare_images_differently_are_noticed(files: Any, tmp_path: Path, capsys: Any) -> None:
    cfg = Config.fromfile(files["float.py"])
    cfg.data.test.pipeline[0]["mean"] = [0.5]
    cfg.dump(tmp_path / "other.py")
    given = in_order(files, str(tmp_path / "other.py"), "int.py", "float.pth", "int.pth")
    compare_checkpoints(files["images"], given, out=tmp_path / "x.html", num_images=3)
    assert "prepare test images differently" in capsys.readouterr().out


def test_a_work_directory_says_it_all(files: Any, tmp_path: Path, capsys: Any) -> None:
    """The page of the run's folder is that of its config and checkpoints by name, titled after the run."""
    work = tmp_path / "my_run"
    shutil.copytree(Path(files["int.pth"]).parent, work)
    assert main(["compare", files["images"], str(work), "--device", "cpu", "--num-images", "20"]) == 0
    said = capsys.readouterr().out
    figures = json.loads((work / "model_analysis.json").read_text(encoding="utf-8"))
    assert figures["about"]["title"] == "my_run" and (work / "model_analysis.html").exists()
    assert figures["about"]["float checkpoint"] == str(work / "best_float_top-1.pth")
    assert figures["about"]["quantized checkpoint"] == str(work / "best_top-1.pth")
    given = [str(work / name) for name in ("int.py", "int.py", "best_float_top-1.pth", "best_top-1.pth")]
    compare_checkpoints(files["images"], given, out=tmp_path / "x.html", num_images=20, device="cpu")
    again = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert again["layers"] == figures["layers"] and again["advice"] == figures["advice"]
    snippet = figures["advice"]["special_layers"]
    assert not snippet or snippet in said


def test_the_advice_can_be_pasted(files: Any, tmp_path: Path) -> None:
    """A config with the text in it gives the layers 8 bits, and keeps what it had."""
    cfg = Config.fromfile(files["int.py"])
    own = dict(type="LSQConv", nbits_w=2, num_bit_a=3, quant_activation=True)
    transformer = {**cfg.quant_transformer, "special_layers": dict(layers_name=["backbone.conv2"], convert_type=[own])}
    for names in (["head.fc"], ["backbone.conv2", "backbone.conv1"]):
        kinds = {"head.fc": "Linear"}
        advices = [Advice(name, kinds.get(name, "Conv2d"), 1.0, None, 0.1, 0.1) for name in names]
        pasted = eval(f"dict({special_layers(advices, transformer)})")
        model = build_classifier(cfg.model)
        rows = {row.name: row for row in build_mtransformer({**transformer, **pasted}).plan(model) if row.quantized}
        assert {name: (rows[name].num_bit_w, rows[name].num_bit_a) for name in names} == dict.fromkeys(names, (8, 8))
        others = {"backbone.conv2": (2, 3), "backbone.conv1": (4, 4), "head.fc": (4, 4)}
        for name in others.keys() - set(names):
            assert (rows[name].num_bit_w, rows[name].num_bit_a) == others[name]
    assert special_layers([], transformer) == "" and special_layers(advices, {}) == ""


def test_a_folder_that_is_no_run(files: Any, tmp_path: Path) -> None:
    for name, message in (("none", "is no folder"), ("empty", "found none")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=f"{message}.*IMAGES WORK_DIR"):
            compare_checkpoints(files["images"], [tmp_path / name])
    shutil.copy(files["int.py"], tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"no latest\.pth"):
        compare_checkpoints(files["images"], [tmp_path / "empty"])
    (tmp_path / "empty" / "other.py").touch()
    with pytest.raises(ConfigError, match=r"found int\.py, other\.py"):
        compare_checkpoints(files["images"], [tmp_path / "empty"])

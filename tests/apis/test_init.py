"""From a folder of images to a config that trains: what is found, how it is split, what is written."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lbitcls.commands.main import main
from lbitcls.datasets import build_dataset
from lbitcls.models import build_classifier
from lbitcls.starter import first_config as module
from lbitcls.starter.recipe import find_network
from lbitcls.starter.survey import Image as Found
from lbitcls.starter.survey import split_images, survey_folder
from lbitcls.utils import Config
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError

ROOT = Path(__file__).resolve().parent.parent.parent
CLASSES = ("Bienen & Wespen", "a'b\" c", "蟻")
Photos = Callable[..., Path]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, without a network and without weights in a cache."""

    def missing(name: str) -> Path:
        raise CheckpointError(f"{name} cannot be downloaded; put the file somewhere.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "fetch_weights", missing)


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """`photos('My Photos', 8, 6, 4)`: a folder with so many photos of each class; its path."""
    generator = np.random.default_rng(0)

    def make(folder: str, *numbers: int, size: tuple[int, int] = (40, 48)) -> Path:
        for label, (name, number) in enumerate(zip(CLASSES, numbers)):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(60 * label, 60 * label + 70, (*size, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"img {i}.jpg")
        return tmp_path / folder

    return make


def read(config: str | Path) -> Config:
    return Config.fromfile(config)


def files_of(cfg: Config, part: str) -> dict[str, int]:
    """The labels of a part's images by file name."""
    dataset = build_dataset(cfg.data[part], data_root=cfg.data_root)
    assert dataset.CLASSES == tuple(cfg.classes)
    return {dataset.describe(i): int(dataset.labels[i]) for i in range(len(dataset))}


def test_folder_without_a_split(photos: Photos, capsys: Any) -> None:
    folder = photos("My Photos", 10, 5, 1)
    shutil.copy(folder / CLASSES[0] / "img 1.jpg", folder / CLASSES[0] / "img 1 copy.jpg")
    (folder / CLASSES[1] / "torn.jpg").write_bytes(b"\xff\xd8\xff no")
    (folder / "nothing").mkdir()
    assert main(["init", "My Photos"]) == 0
    said = capsys.readouterr().out
    for part in (
        "Sizes: 48 to 48",
        "Imbalance: 'Bienen & Wespen' has",
        "Class folders without images, left out: nothing",
        "torn.jpg",
    ):
        assert part in said
    assert "The same image twice: 1" in said and "Classes with one image are used for training only: 蟻" in said
    assert "cannot be downloaded" in said and "lbitcls train my_photos.py" in said
    assert "lbitcls train my_photos.py --find-lr\n" in Path("my_photos.py").read_text()
    cfg = read("my_photos.py")
    train, val = files_of(cfg, "train"), files_of(cfg, "val")
    assert len(train) + len(val) == 17 and len(val) in (3, 4) and not set(train) & set(val)
    assert all(str(Path(name).parent.name) == cfg.classes[label] for name, label in {**train, **val}.items())
    assert list(cfg.classes) == sorted(CLASSES) and cfg.model.head.num_classes == 3
    twins = [name for name in train if "img 1" in name and "Bienen" in name]
    assert len(twins) in (0, 2)
    assert str(folder.parent) not in Path("my_photos.py").read_text()


def test_a_config_is_not_overwritten(photos: Photos, capsys: Any) -> None:
    photos("p", 3, 3)
    for path, out in (("p.py", None), ("c_val.txt", "c.py")):
        Path(path).write_text("mine")
        assert main(["init", "p", *(["--out", out] if out else [])]) == 2
        assert f"{path} already exists" in capsys.readouterr().err
        assert Path(path).read_text() == "mine"
    assert not Path("c.py").exists()


def test_folder_with_parts(photos: Photos, capsys: Any) -> None:
    """They are taken as they are: the data sets read the folders."""
    photos("set/Train", 4, 3)
    photos("set/valid", 2, 2)
    photos("set/test", 1, 2)
    assert main(["init", "set", "--out", "here/c.py", "--pretrained", "none"]) == 0
    assert sorted(path.name for path in Path("here").iterdir()) == ["c.py"]
    cfg = read("here/c.py")
    assert [cfg.data[part].data_prefix for part in ("train", "val", "test")] == [
        "../set/Train",
        "../set/valid",
        "../set/test",
    ]
    assert [len(files_of(cfg, part)) for part in ("train", "val", "test")] == [7, 4, 3]
    assert "same image" not in capsys.readouterr().out


def test_images_that_are_in_two_parts_are_not_trained_on(photos: Photos, capsys: Any) -> None:
    root = photos("set/train", 4, 3).parent
    photos("set/val", 2, 2)
    shutil.copy(root / "val" / CLASSES[0] / "img 0.jpg", root / "train" / CLASSES[0] / "seen.jpg")
    shutil.copy(root / "val" / CLASSES[0] / "img 1.jpg", root / "train" / CLASSES[1] / "other.jpg")
    assert main(["init", "set"]) == 0
    said = capsys.readouterr().out
    assert "The same image in two parts (left out of training): 2" in said and "in two classes: 1" in said
    cfg = read("set.py")
    assert len(files_of(cfg, "train")) == 7 and cfg.data.val.data_prefix == "set/val"


def test_folders_within_one_another(photos: Photos) -> None:
    photos("outer/flowers/train", 3, 3)
    assert main(["init", "outer"]) == 0
    assert len(files_of(read("outer.py"), "train")) == 4


def test_split_is_the_same_everywhere() -> None:
    images = [Found(f"{kind}/{i}.jpg", "train", kind, digest=f"{kind}{i}") for kind in "ab" for i in range(50)]
    train, val = split_images(images, 0.2)
    assert split_images(images[::-1], 0.2) == (train, val)
    assert [sum(image.kind == kind for image in val) for kind in "ab"] == [10, 10]
    assert len(train) + len(val) == 100
    grown = [*images, Found("a/new.jpg", "train", "a", digest="new")]
    assert len(set(val) & set(split_images(grown, 0.2)[1])) >= 19


def test_time_limit(photos: Photos, capsys: Any) -> None:
    photos("p", 3, 3)
    survey = survey_folder("p", workers=1, time_limit=0)
    assert survey.checked == 0 and survey.classes == tuple(sorted(CLASSES[:2]))
    assert main(["init", "p", "--time-limit", "0"]) == 0
    assert "Only 0 of 6 images were read" in capsys.readouterr().out
    assert read("p.py").data.train.on_error == "skip"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["My Phots"], 1, "Did you mean 'My Photos'"),
        (["one"], 1, "two or more class folders"),
        (["torn"], 1, "training needs two"),
        (["set"], 1, "belongs to the class '蟻', which has no training images"),
        (["My Photos", "--quantize", "lsq-4w4"], 2, "Did you mean 'lsq-4w4f'"),
        (["My Photos", "--quantize", "int3"], 2, "Did you mean 'int8'"),
        (["My Photos", "--quantize", "doref-2w2f"], 2, "Did you mean 'dorefa'? Methods: lsq, lsqplus, dsq, dorefa, "),
        (["My Photos", "--quantize", "qat-9w8f"], 2, "--quantize qat-9w8f: TorchQATConv (num_bit_w)"),
        (["My Photos", "--quantize", "lsq-32w4f"], 2, "2 to 8 bits; 32 is float"),
        (["My Photos", "--backbone", "mobilenet_v4"], 2, "Did you mean 'mobilenet_v2'"),
        (["My Photos", "--out", "x.yaml"], 2, "a .py file"),
        (["My Photos", "--val", "1"], 2, "between 0 and 1"),
        (["My Photos", "--workers", "0"], 2, "an integer ≥ 1"),
        (["My Photos", "--pretrained", "weights.pth"], 1, "there is no checkpoint weights.pth"),
        (["My Photos", "--pretrained", "torchvision://mobilenet_v2"], 1, "cannot be downloaded"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, photos: Photos, capsys: Any) -> None:
    photos("My Photos", 2, 2)
    photos("one", 2)
    photos("set/train", 2, 2)
    photos("set/val", 0, 1, 1)
    photos("torn", 1, 0)
    Path("torn", CLASSES[1], "x.png").write_bytes(b"")
    assert main(["init", *arguments]) == code
    assert message in capsys.readouterr().err
    assert not list(Path().glob("*.py"))


def test_own_weights(photos: Photos, tmp_path: Path) -> None:
    photos("p", 3, 3)
    from lbitcls.utils.checkpoint import save_checkpoint

    save_checkpoint(build_classifier(read_model("p")), tmp_path / "w.pth")
    module.init_config("p", backbone="squeezenet1_1", pretrained="w.pth", out="c.py")
    assert read("c.py").model.backbone.pretrained == "w.pth"
    build_classifier(read("c.py").model)


def read_model(folder: str) -> Any:
    module.init_config(folder, backbone="squeezenet1_1", pretrained="none", out="scratch.py")
    return read("scratch.py").model


@pytest.mark.slow
def test_a_folder_of_photos_is_trained_on_as_it_is(photos: Photos, capsys: Any, monkeypatch: Any) -> None:
    """`init`, `train`: two commands to an integer model; what is overridden only shortens the test.

    Each command ends with those to type next, which lead to `benchmark`, from another folder too.
    """
    photos("My Photos", 8, 6, 4)
    assert main(["init", "My Photos", "--quantize", "lsq-4w4f", "--backbone", "squeezenet1_1"]) == 0
    assert capsys.readouterr().out.endswith("Next:\n  lbitcls train my_photos.py\n")
    for command in ("train", "test", "visualize errors"):
        assert f"    lbitcls {command} my_photos.py" in Path("my_photos.py").read_text()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    config = "../my_photos.py"
    short = ["--options", "total_epochs=2", "calibration.epoch=1", "data.workers_per_gpu=0", "kernels=plain"]
    assert main(["train", config, *short]) == 0
    work = Path("work_dirs/my_photos")
    assert {"best_top-1.pth", "best_float_top-1.pth", "results.png", "val_predictions.png", "tf_logs"} <= {
        path.name for path in work.iterdir()
    }
    infer, benchmark = commands_said(capsys.readouterr().out)
    assert benchmark == f"lbitcls benchmark {work}/model.onnx {work}/float.onnx"
    assert infer == f"lbitcls infer {work}/model.onnx IMAGE"
    assert main(["benchmark", *benchmark.split()[2:], "--repeats", "1", "--batch", "1"]) == 0
    said = capsys.readouterr()
    assert "Ratios are to" in said.out and "Next" not in said.out
    best, model = str(work / "best_top-1.pth"), str(work / "model.onnx")
    assert main(["export", config, best, "--out", "own.onnx"]) == 0
    assert commands_said(capsys.readouterr().out) == [f"lbitcls test {config} own.onnx", "lbitcls benchmark own.onnx"]
    for given, following in ((best, "export"), (model, "benchmark")):
        assert main(["test", config, given]) == 0
        assert commands_said(capsys.readouterr().out)[0].split()[1] == following


def commands_said(text: str) -> list[str]:
    """The commands that the last lines name."""
    return [line.strip() for line in text.rpartition("Next:\n")[2].splitlines()]


@pytest.mark.parametrize("config", ["c.py", "p/c.py", "configs/mine/c.py", "a'b\"c {{ _base_.x }}\\/c.py"])
@pytest.mark.parametrize("parts", [False, True], ids=["one folder", "train and val"])
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_photos_are_found_from_any_folder(
    config: str, parts: bool, absolute: bool, photos: Photos, tmp_path: Path, monkeypatch: Any
) -> None:
    for folder in ("p/train", "p/val") if parts else ("p",):
        photos(folder, 3, 3)
    monkeypatch.setattr(module, "find_network", lambda name: NETWORK)
    torch.save({"state_dict": {"x": torch.zeros(1)}}, "w.pth")
    folder = str(tmp_path / "p") if absolute else "p"
    path = module.init_config(folder, out=config, pretrained="w.pth").resolve()
    here = files_of(read(path), "train")
    elsewhere = tmp_path / "work" / "elsewhere"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    for given in (path, os.path.relpath(path)):
        cfg = read(given)
        found = files_of(cfg, "train")
        assert {Path(name).resolve() for name in found} == {(tmp_path / name).resolve() for name in here}
        assert (Path(cfg.data_root) / cfg.model.backbone.pretrained).is_file()


def test_errors_are_the_users() -> None:
    with pytest.raises(ConfigError, match="torchvision has no classifier"):
        find_network("alexnett")
    with pytest.raises(DataError):
        survey_folder("nowhere")


NASTY = [
    "{{ fileDirname }}",
    "{{fileBasename}}",
    "{{ _base_.x }}",
    "{{{_base_.model}}}",
    "{{$ENV:x}}",
    "a'b",
    'a"b',
    'a"""b',
    "a\\b",
    "\\x41\\",
    "$(touch stolen)",
    "`touch stolen`",
    "<script>alert(1)</script>",
    "a\tb",
    "a\x1bb",
    "a\u2028b",
    "a\nb",
    "a\rb",
    " a",
    "a ",
    "#a",
    "%s %(x)s {x}",
    "-a",
    "蟻 é",
    "\U0001f41c",
    "e\u0301",
    "a" * 120,
    os.fsdecode(b"a\xffb"),
    "[red]a[/red]",
    "__import__('os')",
    "None",
    "1e-3",
]


def alphabet() -> list[str]:
    words = ["{{", "}}", "_base_", "fileDirname", "é", "蟻", os.fsdecode(b"\xff"), "\u2028"]
    return [*"ab{} '\"\\$`<>&;#%\t\n\r-", *words]


@pytest.mark.parametrize("parts", [False, True], ids=["one folder", "train and val"])
@pytest.mark.parametrize("seed", range(12))
def test_nasty_names(seed: int, parts: bool, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config has the folders' names as classes and finds their images, or a name is refused."""
    monkeypatch.setattr(module, "find_network", lambda name: NETWORK)
    draw = random.Random(f"{seed} {parts}")
    made = ["".join(draw.choices(alphabet(), k=draw.randint(1, 8))).replace("/", "") for _ in range(3)]
    names = {name for name in [*draw.sample(NASTY, 3), *made] if name not in (".", "..") and not name.startswith(".")}
    root = tmp_path / draw.choice(["photos", *(name for name in NASTY if len(name) < 30)])
    for part in ("train", "val") if parts else (".",):
        for name in sorted(names):
            (root / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((8, 8, 3), number + 3 * (part == "val"), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{draw.choice(['', '{{ _base_.x }}'])}{number}.png")
    code = main(["init", "--out", "made.py", "--", str(root)])
    said = capsys.readouterr()
    refused = [name for name in names if bad_name(name) or bad_line(name) or (not parts and name != name.lstrip())]
    assert not list(tmp_path.rglob("stolen"))
    if refused or bad_name(root.name):
        assert code == 1 and said.err.startswith("DataError: "), said
        assert not Path("made.py").exists()
        return
    assert code == 0, said
    cfg = read("made.py")
    assert list(cfg.classes) == sorted(names)
    found = {**files_of(cfg, "train"), **files_of(cfg, "val")}
    assert len(found) == 3 * len(names) * (1 + parts)
    assert all(cfg.classes[label] in path for path, label in found.items())
    assert build_classifier(cfg.model).head.num_classes == len(names)


def bad_name(name: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def bad_line(name: str) -> bool:
    return len(name.splitlines()) > 1


NETWORK = find_network("squeezenet1_1")

"""Mistakes on the command line are answered, in a work directory that holds an earlier run, which they leave."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.commands.main import main

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def wrong(trained: tuple[Path, Path], images: Path, small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wrong files, which the commands only read."""
    from lbitcls.utils import Config

    config, work = trained
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "torn.pth").write_bytes((work / "latest.pth").read_bytes()[:5000])
    cfg = Config.fromfile(config)
    cfg.model.head.num_classes = 7
    _save_run(cfg, folder / "seven.pth")
    (folder / "section.py").write_text(small + "optimiser = dict(lr=1)\n")
    (folder / "key.py").write_text(small + "lr_config = dict(policy='step', stepp=3, _delete_=True)\n")
    (folder / "syntax.py").write_text(small + "optimizer = dict(type='SGD'\n")
    (folder / "name_error.py").write_text(small + "\nwork_dir = workdir\n")
    images_with_a_torn_one(images, folder / "torn")
    return folder


@pytest.fixture
def place(trained: tuple[Path, Path], images: Path, wrong: Path, tmp_path: Path) -> dict[str, Path]:
    """Files that a mistake may name, by the word that stands for them below."""
    config, work = trained
    (tmp_path / "work").mkdir()
    for path in work.iterdir():
        if path.is_file():
            (tmp_path / "work" / path.name).write_bytes(path.read_bytes())
    return {
        "CONFIG": config,
        "WORK": tmp_path / "work",
        "DATA": images,
        "TMP": wrong,
        "BEST": work / "best_top-1.pth",
        "TORN_DATA": wrong / "torn",
    }


def _save_run(cfg: Any, path: Path) -> None:
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer
    from lbitcls.utils import save_checkpoint

    model = build_mtransformer(cfg.quant_transformer)(build_classifier(cfg.model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(model, path, optimizer, meta=dict(epoch=1, iter=4, inner_iter=0, epoch_len=4, run="another"))


def images_with_a_torn_one(images: Path, root: Path) -> None:
    root.mkdir()
    for name in ("meta", "val"):
        (root / name).symlink_to(images / name)
    for path in (images / "train").rglob("*.jpg"):
        copy = root / "train" / path.relative_to(images / "train")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes() if path.name != "5.jpg" else path.read_bytes()[:100])


OPTION = "train CONFIG --data-root DATA --options "
MISTAKES = [
    ("train TMP/section.py", 2, ["'optimiser'", "Did you mean 'optimizer'"]),
    ("train TMP/key.py --data-root DATA", 2, ["'stepp'", "Did you mean 'step'"]),
    ("train TMP/syntax.py", 2, ["syntax.py", "line "]),
    ("train TMP/name_error.py", 2, ["name_error.py", "workdir", "line "]),
    ("train TMP", 2, ["TMP is a folder"]),
    ("train TMP/config2_res18.py", 2, ["there is no config file", "config2_res18.py"]),
    (OPTION + "optimizer.l=0.1", 2, ["optimizer.l", "Did you mean 'lr'"]),
    (OPTION + "optimizer.type=SDG", 2, ["'SDG'", "Did you mean 'SGD'"]),
    (OPTION + "optimizer.lr=fast", 2, ["optimizer.lr", "'fast'"]),
    (OPTION + "+optimizer.momentun=0.9", 2, ["'momentun'", "Did you mean 'momentum'"]),
    (OPTION + "lr_config.policy=cosin", 2, ["'cosin'", "Known", "CosineAnnealing"]),
    (OPTION + "total_epochs=0", 2, ["total_epochs", "0"]),
    (OPTION + "total_epochs=ten", 2, ["total_epochs", "'ten'"]),
    (OPTION + "model.backbone.type=ResNett", 2, ["'ResNett'", "Did you mean 'ResNet'"]),
    (OPTION + "model.backbone.depth=17", 2, ["depth must be one of 18", "got 17"]),
    (OPTION + "model.head.in_channels=32", 2, ["in_channels=32", "64"]),
    (OPTION + "model.head.num_classes=3", 2, ["num_classes", "3"]),
    (OPTION + "data.train.type=ImageNetV2", 2, ["'ImageNetV2'", "Did you mean 'ImageNetV1'"]),
    (OPTION + "data.train.pipeline.1.type=RandomResizeCrop", 2, ["Did you mean 'RandomResizedCrop'"]),
    (OPTION + "quant_transformer.special_layers.layers_name.1=head.fc1", 2, ["'head.fc1'", "Did you mean 'head.fc'"]),
    (OPTION + "quant_transformer.quan_policy.Conv2d.type=LSQConvv", 2, ["'LSQConvv'", "Did you mean 'LSQConv'"]),
    (OPTION + "quant_transformer.quan_policy.Conv2d.type=LSQLinear", 2, ["LSQLinear", "Conv2d"]),
    (OPTION + "quant_transformer.quan_policy.Conv2d.num_bit_w=1", 2, ["num_bit_w", "1"]),
    (OPTION + "quant_transformer.type=mTransformer", 2, ["'mTransformer'", "Did you mean 'mTransformerV2'"]),
    (OPTION + "evaluation.metric=acuracy", 2, ["'acuracy'", "Did you mean 'accuracy'"]),
    (OPTION + "log_config.hooks.0.type=TextLogerHook", 2, ["Did you mean 'TextLoggerHook'"]),
    (OPTION + "calibration.epoch=1", 2, ["calibration.epoch", "1"]),
    (OPTION + "dist_params.backend=ncccl --launcher pytorch", 2, ["launcher", "dist_train.sh"]),
    (OPTION + "optimizer=SGD", 2, ["optimizer = dict(", "'SGD'"]),
    (OPTION + "data.train.pipeline=None", 2, ["pipeline must be a list", "None"]),
    (OPTION + "data.samples_per_gpu=0", 2, ["samples_per_gpu", "0"]),
    (OPTION + "data.train.data_prefix=missing", 1, ["found neither 'missing'", "DATA", "--data-root"]),
    (OPTION + "load_from=TMP/none.pth", 1, ["there is no checkpoint", "none.pth"]),
    (OPTION + "load_from=TMP/torn.pth", 1, ["torn.pth", "damaged"]),
    (OPTION + "load_from=TMP", 1, ["TMP is a folder", "torn.pth"]),
    ("train CONFIG --data-root TMP", 1, ["found neither 'train'", "TMP"]),
    ("train CONFIG --data-root DATA --resume-from TMP/torn.pth", 1, ["torn.pth", "damaged"]),
    ("train CONFIG --data-root DATA --resume-from TMP/seven.pth", 1, ["seven.pth", "another model", "head.fc.weight"]),
    ("train CONFIG --data-root DATA --resume-from BEST", 1, ["best_top-1.pth", "--load-from"]),
    ("train CONFIG --data-root DATA --resume-from TMP", 1, ["TMP is a folder"]),
    ("train CONFIG --data-root DATA --gpus 2", 2, ["--gpus 2", "dist_train.sh"]),
    ("train CONFIG --data-root DATA --seed -1", 2, ["seed", "-1"]),
    ("test CONFIG TMP/seven.pth --data-root DATA", 1, ["seven.pth", "head.fc.weight (7, 64) for (1000, 64)"]),
    ("test CONFIG TMP/torn.pth --data-root DATA", 1, ["torn.pth", "damaged"]),
    ("test CONFIG WORK --data-root DATA", 1, ["WORK is a folder", "latest.pth"]),
    ("test CONFIG WORK/last.pth --data-root DATA", 1, ["Did you mean 'latest.pth'"]),
    ("test CONFIG WORK/latest.pth --data-root DATA --metrics f1score", 2, ["'f1score'", "Did you mean 'f1_score'"]),
    ("test CONFIG WORK/latest.pth --data-root DATA --predictions TMP/rows.txt", 2, [".csv", "rows.txt"]),
    ("test CONFIG WORK/latest.pth --data-root DATA --device gpu0", 2, ["'gpu0'", "cuda:N"]),
]


def in_place(text: str, place: dict[str, Path]) -> str:
    for word, path in sorted(place.items(), key=lambda item: -len(item[0])):
        text = re.sub(rf"\b{word}\b", str(path), text)
    return text


@pytest.mark.parametrize(("command", "code", "words"), MISTAKES, ids=lambda value: str(value)[:90])
def test_mistake(command: str, code: int, words: list[str], place: dict[str, Path], capsys: Any) -> None:
    written_over = run_over(place, command, code)
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in words:
        assert in_place(word, place) in message
    assert not [name for name in written_over if name.endswith((".pth", ".jsonl", ".json"))]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (OPTION + "quant_transformer.special_layers.layers_name.1=head.fc1", 2),
        (OPTION + "calibration.epoch=1", 2),
        ("train CONFIG --data-root TMP", 1),
        ("train CONFIG --data-root DATA --resume-from TMP/seven.pth", 1),
        ("train CONFIG --data-root DATA --resume-from BEST", 1),
    ],
)
def test_mistake_leaves_the_earlier_run_as_it_is(command: str, code: int, place: dict[str, Path], capsys: Any) -> None:
    assert run_over(place, command, code) == []
    assert (
        main(
            [
                "train",
                str(place["CONFIG"]),
                "--work-dir",
                str(place["WORK"]),
                "--resume",
                "--cpu-only",
                "--data-root",
                str(place["DATA"]),
                "--options",
                "total_epochs=2",
            ]
        )
        == 0
    )
    assert "Resuming from" in capsys.readouterr().out


def run_over(place: dict[str, Path], command: str, code: int) -> list[str]:
    """Run a command that fails in the work directory of an earlier run; names of the files that it changed."""
    before = {path: path.read_bytes() for path in place["WORK"].iterdir()}
    arguments = [in_place(word, place) for word in command.split()]
    if arguments[0] == "train":
        arguments[2:2] = ["--work-dir", str(place["WORK"])]
    assert main(arguments) == code
    return sorted(path.name for path, content in before.items() if not path.exists() or path.read_bytes() != content)


def test_corrupt_image(place: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """It comes to light in training, so a run has begun; its message names the file."""
    flags = ["--work-dir", str(tmp_path / "new"), "--data-root", str(place["TORN_DATA"])]
    assert main(["train", str(place["CONFIG"]), *flags]) == 1
    assert "train/n1/5.jpg" in capsys.readouterr().err
    skip = ["--options", "+data.train.on_error=skip"]
    assert main(["train", str(place["CONFIG"]), *flags, *skip]) == 0
    assert "Leaving out an unreadable image (1 so far)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("train CONFIG --max-epochs 3", 2, ["no option --max-epochs", "Did you mean --epochs 3?"]),
        ("test CONFIG TMP/seven.pth --data-root DATA", 1, ["CheckpointError", "does not match the model"]),
        ("train TMP/syntax.py", 2, ["ConfigError", "syntax.py"]),
    ],
)
def test_mistake_by_the_tools(
    command: str, code: int, words: list[str], place: dict[str, Path], run_python: Any
) -> None:
    verb, *arguments = (in_place(word, place) for word in command.split())
    done = run_python(ROOT / "tools" / f"{verb}.py", *arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words)

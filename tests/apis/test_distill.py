"""Distillation in a run: teachers from files, records, resuming, and mistakes."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_resume import QUANT as QUANTIZED
from test_resume import end, same, same_run

from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.inference.teacher import ExportedTeacher
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, LbitclsError

QUANT = dict(kernels="plain", **QUANTIZED)
MIXED = dict(augments=dict(type="BatchMixup", alpha=0.5))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_sections: dict[str, Any]) -> Path:
    """A float teacher: its checkpoint."""
    folder = tmp_path_factory.mktemp("teacher")
    cfg = Config({**copy.deepcopy(tiny_sections), "work_dir": str(folder), "total_epochs": 1})
    cfg.dump(folder / "config.py")
    train_classifier(cfg)
    return folder / "latest.pth"


def records(folder: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def log_of(folder: Path | str) -> str:
    return "".join(path.read_text() for path in sorted(Path(folder).glob("*.log")))


def test_a_quantized_run_learns_from_a_checkpoint_alone(make_config: Any, teacher: Path, capsys: Any) -> None:
    before = teacher.read_bytes()
    given = dict(teacher=dict(checkpoint=str(teacher)), temperature=2.0, weight=0.5, label_weight=0.25)
    cfg = make_config(distill=given, ema=dict(decay=0.9), **QUANT)
    train_classifier(cfg)
    trained = [record for record in records(cfg.work_dir) if record["mode"] == "train"]
    for record in trained:
        parts = 0.5 * record["loss_distill"] + 0.25 * record["loss_label"]
        assert record["loss"] == pytest.approx(parts, rel=1e-5) and record["loss_distill"] > 0
    assert f"Teacher: {teacher}; loss 0.5 · kl at temperature 2, 0.25 · labels" in log_of(cfg.work_dir)
    assert "Keeping the teacher's logits of 1437 images" in log_of(cfg.work_dir)
    assert f"teacher {teacher}; cpu" in capsys.readouterr().out
    saved = torch.load(f"{cfg.work_dir}/latest.pth", weights_only=True)
    assert not [name for name in saved["state_dict"] if not name.startswith(("backbone.", "head."))]
    groups = saved["optimizer"]["param_groups"]
    assert sum(len(group["params"]) for group in groups) == 8 + 4  # its parameters, and a step for each quantizer
    assert teacher.read_bytes() == before
    assert main(["test", f"{cfg.work_dir}/latest.pth"]) == 0  # needs no teacher


def test_a_teacher_changes_nothing_but_the_loss(make_config: Any, teacher: Path) -> None:
    """Random numbers, validation and everything else are those of a run without a teacher."""
    plain, taught = make_config("plain"), make_config("taught")
    taught.distill = dict(teacher=dict(checkpoint=str(teacher)), weight=1e-30, label_weight=1.0)
    taught.data.train.pipeline = plain.data.train.pipeline = [
        dict(type="RandomFlip", flip_prob=0.5),
        *plain.data.train.pipeline,
    ]
    for cfg in (plain, taught):
        train_classifier(cfg)
    one, other = (torch.load(f"{cfg.work_dir}/latest.pth", weights_only=True) for cfg in (plain, taught))
    same(one["state_dict"], other["state_dict"])


SETTINGS = {
    "kept logits, kl": dict(distill=dict(), **QUANT),
    "features, mixup, bf16, ema": dict(
        distill=dict(loss="feature", modules=["backbone.conv2", "backbone.bn1"]), amp="bf16", ema=dict(decay=0.9)
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_resumed_run_is_bit_identical(make_config: Any, teacher: Path, setting: str) -> None:
    sections = copy.deepcopy(SETTINGS[setting])
    sections["distill"]["teacher"] = dict(checkpoint=str(teacher))
    sections["checkpoint_config"] = dict(interval=7, by_epoch=False)
    whole, ended = make_config("whole", **sections), make_config("ended", **sections)
    if "mixup" in setting:
        for cfg in (whole, ended):
            cfg.model.train_cfg = copy.deepcopy(MIXED)
    train_classifier(whole)
    end(ended, "after_iter", 17)
    train_classifier(ended, resume=True)
    same_run(whole, ended)
    kept = "Keeping the teacher's logits" in log_of(whole.work_dir)
    assert kept == ("kept" in setting)
    if not kept:
        assert "distill: The teacher runs in each step: features" in log_of(whole.work_dir)


def test_config_and_checkpoint_are_the_same_teacher(make_config: Any, teacher: Path) -> None:
    alone, both = make_config("alone"), make_config("both")
    alone.distill = dict(teacher=dict(checkpoint=str(teacher)), loss="mse")
    both.distill = dict(teacher=dict(checkpoint=str(teacher), config=str(teacher.with_name("config.py"))), loss="mse")
    for cfg in (alone, both):
        train_classifier(cfg)
    assert records(alone.work_dir)[-1]["loss"] == records(both.work_dir)[-1]["loss"]


@pytest.mark.slow
def test_an_exported_teacher_is_the_checkpoint(make_config: Any, delivered: Any) -> None:
    """A quantized teacher, as a checkpoint and as the ONNX file exported from it: the same logits."""
    cfg = Config.fromfile(delivered.config)
    cfg.merge_from_dict(dict(total_epochs=1, seed=0, kernels="plain", export=None, log_config=dict(pictures=False)))
    cfg.quant_transformer = cfg.calibration = None
    losses = []
    for key, file in (("checkpoint", delivered.checkpoint), ("model", delivered.exported)):
        cfg.work_dir = str(delivered.config.parent / f"from_{key}")
        cfg.distill = dict(teacher={key: str(file)}, label_weight=0)
        train_classifier(cfg)
        losses.append([record["loss_distill"] for record in records(cfg.work_dir) if record["mode"] == "train"])
    assert losses[0][0] > 0
    # A sum that lies between two steps may be rounded otherwise by the engine.
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=2e-3, atol=1e-5)


def changed_teacher(path: Path, target: Path) -> Path:
    """A copy of a teacher's checkpoint with other weights."""
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["head.fc.bias"] += 1.0
    torch.save(saved, target)
    return target


def test_another_teacher_after_an_interruption_is_a_warning(make_config: Any, teacher: Path, tmp_path: Path) -> None:
    given = Path(shutil.copy(teacher, tmp_path / "teacher.pth"))
    cfg = make_config(distill=dict(teacher=dict(checkpoint=str(given))), total_epochs=1)
    train_classifier(cfg)
    digest = hashlib.sha256(given.read_bytes()).hexdigest()
    assert torch.load(f"{cfg.work_dir}/latest.pth", weights_only=True)["meta"]["teacher"] == digest
    cfg.total_epochs = 2
    train_classifier(cfg, resume=True)
    assert "WARNING" not in log_of(cfg.work_dir)
    other = hashlib.sha256(changed_teacher(teacher, given).read_bytes()).hexdigest()
    cfg.total_epochs = 3
    train_classifier(cfg, resume=True)
    told = f"teacher.pth is another file than the run was started with (SHA-256 {other[:12]}…, then {digest[:12]}…)"
    assert log_of(cfg.work_dir).count(told) == 1
    moved = Path(shutil.move(given, tmp_path / "moved.pth"))  # the file counts, not its name
    cfg.distill.teacher.checkpoint, cfg.total_epochs = str(moved), 4
    train_classifier(cfg, resume=True)
    assert log_of(cfg.work_dir).count("continues differently") == 1


def test_a_teacher_that_comes_or_goes_is_a_warning(make_config: Any, teacher: Path) -> None:
    taught = dict(distill=dict(teacher=dict(checkpoint=str(teacher))))
    train_classifier(make_config(**taught, total_epochs=1))
    train_classifier(make_config(total_epochs=2), resume=True)
    assert "saved with a teacher and resumes without" in log_of(make_config().work_dir)
    train_classifier(make_config(**taught, total_epochs=3), resume=True)
    assert "saved without a teacher and resumes with" in log_of(make_config().work_dir)


def test_a_checkpoint_of_an_older_version_knows_no_teacher(make_config: Any, teacher: Path) -> None:
    cfg = make_config(distill=dict(teacher=dict(checkpoint=str(teacher))), total_epochs=1)
    train_classifier(cfg)
    latest = Path(cfg.work_dir) / "latest.pth"
    saved = torch.load(latest, weights_only=True)
    del saved["meta"]["teacher"]
    torch.save(saved, latest)
    cfg.total_epochs = 2
    train_classifier(cfg, resume=True)
    assert "WARNING" not in log_of(cfg.work_dir)


def test_resuming_needs_the_teacher(make_config: Any, teacher: Path, tmp_path: Path) -> None:
    given = Path(shutil.copy(teacher, tmp_path / "teacher.pth"))
    cfg = make_config(distill=dict(teacher=dict(checkpoint=str(given))), total_epochs=1)
    train_classifier(cfg)
    given.unlink()
    cfg.total_epochs = 2
    with pytest.raises(CheckpointError, match=r"distill\.teacher: there is no checkpoint .*teacher\.pth"):
        train_classifier(cfg, resume=True)


def wrong(**changes: Any) -> tuple[str, dict[str, Any]]:
    return changes.pop("told"), changes


@pytest.mark.parametrize(
    ("told", "changes"),
    [
        wrong(told="distill.teacher: the section accepts either checkpoint or model; got neither", teacher={}),
        wrong(told="got both", teacher=dict(model="x.onnx")),
        wrong(told="got neither", teacher=dict(checkpoint="")),
        wrong(told="has no module ''.", loss="feature", modules=[""]),
        wrong(told="config is for a checkpoint; x.onnx", teacher=dict(model="x.onnx", checkpoint=None, config="x.py")),
        wrong(told="Did you mean 'temperature'?", temperatur=4),
        wrong(told="distill.temperature must be a number > 0; got 0", temperature=0),
        wrong(told="temperature needs loss='kl'; got loss='mse'", loss="mse", temperature=4),
        wrong(told="loss='feature' needs modules", loss="feature"),
        wrong(told="modules needs loss='feature'; got loss='kl'", modules=["head"]),
        wrong(told="trains no head", loss="feature", modules=["backbone.conv1"], label_weight=0),
        wrong(
            told="has no module 'backbone.conv3'. Did you mean 'backbone.conv",
            loss="feature",
            modules=["backbone.conv3"],
        ),
        wrong(told="there is no checkpoint nowhere.pth", teacher=dict(checkpoint="nowhere.pth")),
        wrong(told="does not record its config; give it as", teacher=dict(checkpoint="bare.pth")),
    ],
)
def test_mistakes(make_config: Any, teacher: Path, tmp_path: Path, monkeypatch: Any, told: str, changes: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.load(teacher, weights_only=True)["state_dict"], "bare.pth")
    distill = {**changes, "teacher": dict(checkpoint=str(teacher))}
    if "teacher" in changes:
        distill["teacher"] = changes["teacher"] and {**distill["teacher"], **changes["teacher"]}
    with pytest.raises(LbitclsError) as error:
        train_classifier(make_config(distill=distill))
    assert told in str(error.value)
    assert not (tmp_path / "work" / "log.jsonl").exists()


def test_a_teacher_that_does_not_fit(make_config: Any, teacher: Path, tmp_path: Path) -> None:
    given = dict(teacher=dict(checkpoint=str(teacher)))
    other = make_config(distill=given)
    other.data.train.pipeline[0] = dict(type="Normalize", mean=[0.5], std=[0.5])
    with pytest.raises(ConfigError, match=r"has Normalize\(mean=\[0.5\].* was trained with Normalize\(mean=\[0.305"):
        train_classifier(other)
    other = make_config(distill=given)
    other.model.head.num_classes = 11
    with pytest.raises(ConfigError, match="has 10 classes, but the model has 11"):
        train_classifier(other)
    content = torch.load(teacher, weights_only=True)
    content["meta"]["CLASSES"] = content["meta"]["CLASSES"][::-1]
    torch.save(content, tmp_path / "turned.pth")
    with pytest.raises(DataError, match="does not number the classes as the teacher .*turned.pth"):
        train_classifier(make_config(distill=dict(teacher=dict(checkpoint=str(tmp_path / "turned.pth")))))
    with pytest.raises(ConfigError, match="distill needs images for the teacher, which feature_cache replaces"):
        train_classifier(make_config(distill=given, feature_cache=True))
    shutil.copy(teacher, tmp_path / "cut.pth")
    with (tmp_path / "cut.pth").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        train_classifier(make_config(distill=dict(teacher=dict(checkpoint=str(tmp_path / "cut.pth")))))


def test_a_teacher_for_other_images(make_config: Any, teacher: Path, tmp_path: Path) -> None:
    """It is known when the teacher runs, in the first step or before, and told as the teacher's error."""
    content = torch.load(teacher, weights_only=True)
    content["state_dict"]["backbone.conv1.weight"] = torch.zeros(8, 3, 3, 3)
    torch.save(content, tmp_path / "colors.pth")
    cfg = Config.fromfile(teacher.with_name("config.py"))
    cfg.model.backbone = dict(type="TinyColorNet")
    cfg.dump(tmp_path / "colors.py")
    files = dict(checkpoint=str(tmp_path / "colors.pth"), config=str(tmp_path / "colors.py"))
    for epochs in (1, 2):  # in the step; in advance
        with pytest.raises(
            ConfigError, match=r"distill.teacher cannot process .* \(128, 1, 8, 8\): TinyColorNet needs"
        ):
            train_classifier(make_config(distill=dict(teacher=files), total_epochs=epochs))


def test_a_teacher_in_the_work_directory_would_be_replaced(make_config: Any, teacher: Path) -> None:
    cfg = make_config(distill=dict(teacher=dict(checkpoint=str(teacher))))
    cfg.work_dir = str(teacher.parent / ".." / teacher.parent.name)
    with pytest.raises(ConfigError, match=r"latest.pth is in the work directory, where this run writes its own"):
        train_classifier(cfg)
    assert teacher.is_file()


def test_an_exported_teacher_is_not_compiled(make_config: Any, tmp_path: Path, monkeypatch: Any) -> None:
    exported = SimpleNamespace(num_classes=10, CLASSES=None, logits=lambda img: np.zeros((len(img), 10), np.float32))
    monkeypatch.setattr("lbitcls.inference.teacher._open", lambda given, session: (ExportedTeacher(exported), None))
    compiled: list[Any] = []
    monkeypatch.setattr("lbitcls.workflows.training._compile", lambda models, device: compiled.extend(models))
    (tmp_path / "teacher.onnx").write_bytes(b"")
    given = dict(teacher=dict(model=str(tmp_path / "teacher.onnx")))
    train_classifier(make_config(distill=given, compile=True, total_epochs=1))
    assert [type(model).__name__ for model in compiled] == ["Student"]


def test_normalization_that_cannot_be_compared_is_a_warning(make_config: Any, teacher: Path) -> None:
    cfg = make_config(distill=dict(teacher=dict(checkpoint=str(teacher))), total_epochs=1)
    cfg.data.train.pipeline[0:1] = [
        dict(type="v2.ToDtype", dtype="float32", scale=True),
        dict(type="v2.Normalize", mean=[0.305], std=[0.376]),
    ]
    train_classifier(cfg)
    assert "may be normalized differently: only one of the pipelines" in log_of(cfg.work_dir)


def test_check_takes_a_step_with_the_teacher(write_config: Any, teacher: Path, capsys: Any) -> None:
    good = write_config(distill=dict(teacher=dict(checkpoint=str(teacher))), compile=True)
    assert main(["check", str(good)]) == 0
    bad = write_config(distill=dict(teacher=dict(checkpoint="nowhere.pth")))
    assert main(["check", str(bad)]) == 2
    assert "nowhere.pth" in capsys.readouterr().err
    later = write_config(distill=dict(teacher=dict(checkpoint="torchvision://resnet18", config="x.py")))
    assert main(["check", str(later)]) == 0
    assert "distill.teacher.checkpoint='torchvision://" in capsys.readouterr().out

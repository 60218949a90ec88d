"""A run with TensorBoard's hook: the same as without it, gone on with, and how much it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.apis import train_classifier
from lbitcls.assembly.session import Session, make_model
from lbitcls.settings.sections import read_settings
from lbitcls.tracking import tensorboard as module
from lbitcls.tracking.tensorboard import TensorboardLoggerHook, chosen_layers
from lbitcls.utils import Config
from lbitcls.utils.dist import Place
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import get_logger

sys.path.insert(0, str(Path(__file__).resolve().parent))

from event_files import EVERY, LAYERS, QUANT, board, last, line, read, steps, table

# What a run must not feel.


def everything(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a checkpoint by their place."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        return {name: value}
    return {place: leaf for key, part in pairs for place, leaf in everything(part, f"{name}.{key}").items()}


def content(cfg: Config) -> dict[str, Any]:
    checkpoint = torch.load(Path(cfg.work_dir) / "latest.pth", weights_only=True)
    return {k: v for k, v in everything(checkpoint).items() if k not in (".meta.config", ".meta.run")}


def check_equal(one: Config, other: Config) -> None:
    first, second = content(one), content(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


CASES: dict[str, dict[str, Any]] = {
    "ema, folded": dict(
        ema=dict(decay=0.9), quant_transformer={**QUANT["quant_transformer"], "fold_bn": True}, total_epochs=2
    ),
    "bf16, observers": dict(
        amp="bf16",
        calibration=dict(epoch=0, num_batches=1),
        quant_transformer=dict(
            type="mTransformerV2", quan_policy=dict(Conv2d=dict(type="TorchQATConv", num_bit_w=4, num_bit_a=4))
        ),
        total_epochs=2,
    ),
    "workers": dict(workers=2, total_epochs=2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_same_with_and_without(case: str, make_config: Any) -> None:
    sections = {**QUANT, **CASES[case]}
    plain, watched = (make_config(work, **sections) for work in ("plain", "watched"))
    watched.log_config = board(layers=["backbone"])
    for cfg in (plain, watched):
        train_classifier(cfg)
    check_equal(plain, watched)
    assert steps(read(watched), "input_sqnr_db/backbone.conv2")[-1] == 24


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_run_is_the_same_with_and_without(make_config: Any) -> None:
    plain, watched = (make_config(work, compile=True, kernels="fused", **QUANT) for work in ("plain", "watched"))
    watched.log_config = board()
    for cfg in (plain, watched):
        train_classifier(cfg)
    check_equal(plain, watched)
    assert steps(read(watched), "input_sqnr_db/head.fc") == [24]


def test_other_ranks_write_nothing(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_main", lambda: False)
    monkeypatch.setattr("lbitcls.core.hooks.log.is_main", lambda: False)
    cfg = make_config(log_config=board(), total_epochs=1)
    train_classifier(cfg)
    assert not (Path(cfg.work_dir) / "tf_logs").exists()


# Runs that stop and go on.


def test_a_run_that_goes_on_has_one_line_and_no_gap(make_config: Any) -> None:
    from tiny_parts import Ended

    cfg = make_config(log_config=board(), total_epochs=3, custom_hooks=[dict(type="EndAt", event="after_iter", at=30)])
    with pytest.raises(Ended):
        train_classifier(cfg)
    events = read(cfg)
    assert line(events)["epochs"] == 3 and "_hparams_/session_end_info" not in events.summary_metadata
    assert steps(events, "best/top-1") == [12, 24] and steps(events, "train/loss")[-1] == 29
    cfg.custom_hooks = []
    summary = train_classifier(cfg, resume=True)
    events = read(cfg)
    assert steps(events, "train/loss") == [5, 10, 12, 17, 22, 24, 29, 34, 36]
    assert steps(events, "best/top-1") == steps(events, "predictions/val", "Images") == [12, 24, 36]
    assert steps(events, "weight/head.fc/float", "Histograms") == [12, 24, 36]
    assert last(events, "best/top-1") == pytest.approx(summary["float"]["top1"])
    assert table(events, "session_end_info").status == 1
    assert line(events)["method"] == "float" and line(events)["weight_bits"] == 32


def test_a_finished_run_that_is_asked_to_go_on_stays_as_it_is(make_config: Any) -> None:
    cfg = make_config(log_config=board(), total_epochs=1)
    train_classifier(cfg)
    before = {path: path.read_bytes() for path in (Path(cfg.work_dir) / "tf_logs").iterdir()}
    train_classifier(cfg, resume=True)
    assert before == {path: path.read_bytes() for path in (Path(cfg.work_dir) / "tf_logs").iterdir()}


def test_the_exported_file_stands_in_the_table(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered = dict(top1=91.5, size_kib=7.25, float_size_kib=20.0, latency=[], file="model.onnx")
    monkeypatch.setattr("lbitcls.workflows.training.export_run", lambda *args: delivered)
    cfg = make_config(
        log_config=board(), total_epochs=1, export=dict(verify=False), **{**QUANT, "calibration": dict(epoch=0)}
    )
    summary = train_classifier(cfg)
    events = read(cfg)
    metrics = {info.name.tag for info in table(events, "experiment").metric_infos}
    assert summary["integer"] == delivered and {"integer/top-1", "integer/size_kib"} <= metrics
    assert [(e.step, e.value) for e in events.Scalars("integer/top-1")] == [(12, 91.5)]
    assert last(events, "integer/size_kib") == 7.25


# How much there is.


@pytest.mark.parametrize(("looks", "epochs"), [(2, [3, 5]), (20, [1, 2, 3, 4, 5])])
def test_looks_are_few_whatever_the_length(
    looks: int, epochs: list[int], make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOKS", looks)
    cfg = make_config(log_config=board(interval=None, predictions=False), total_epochs=5)
    train_classifier(cfg)
    assert steps(read(cfg), "input/head.fc/float", "Histograms") == [12 * epoch for epoch in epochs]


def test_less_is_written_where_less_is_asked_for(make_config: Any) -> None:
    options = [dict(histograms=False), dict(layers=["head"], images=0), dict(layers=[])]
    hooks = [{**EVERY, **given, "log_dir": f"logs_{place}"} for place, given in enumerate(options)]
    cfg = make_config(total_epochs=1, **{**QUANT, "calibration": dict(epoch=0)})
    folder = Path(cfg.work_dir)
    for hook in hooks:
        hook["log_dir"] = str(folder / hook["log_dir"] / "tf_logs")
    cfg.log_config = dict(interval=5, hooks=hooks, pictures=False)
    train_classifier(cfg)
    tags = [read(Config(dict(work_dir=str(folder / f"logs_{place}")))).Tags() for place in range(3)]
    assert [bool(tag["histograms"]) for tag in tags] == [False, True, False]
    assert [bool(tag["images"]) for tag in tags] == [True, False, True]
    assert sorted(tags[1]["histograms"]) == ["weight/head.fc/float", "weight/head.fc/quantized"]
    assert "weight_sqnr_db/head.fc" in tags[0]["scalars"] and "input_sqnr_db/head.fc" not in tags[1]["scalars"]
    assert not [name for name in tags[2]["scalars"] if "head.fc" in name]


def test_without_validation_training_images_are_looked_at(make_config: Any) -> None:
    cfg = make_config(log_config=board(), total_epochs=1)
    train_classifier(cfg, validate=False)
    events = read(cfg)
    assert events.Tags()["images"] == ["predictions/train"] and "best/top-1" not in events.Tags()["scalars"]
    assert next(info.name.tag for info in table(events, "experiment").metric_infos) == "train/loss"


def test_a_failing_look_ends_no_run(make_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no light")

    monkeypatch.setattr(module, "take_snapshot", fail)
    cfg = make_config(log_config=board())
    train_classifier(cfg)
    assert capsys.readouterr().out.count("No longer inspecting layers and predictions: RuntimeError: no light") == 1
    assert steps(read(cfg), "val/top-1") == [12, 24]


# What a config may say.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(interval=0), "interval must be an integer ≥ 1; got 0"),
        (dict(images=None), "images must be an integer ≥ 0"),
        (dict(histograms=3), "histograms must be True or False; got 3"),
        (dict(layers=3), r"layers must be a list, \[…\]; got 3"),
        (dict(log_dir=3), "log_dir must be a folder"),
        (dict(hparams="optimizer.lr"), "hparams must be a list"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"TensorboardLoggerHook: {message}"):
        TensorboardLoggerHook(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layers=["*.conv1", "backbone.conv3"]), "'backbone.conv3' names no .*Did you mean 'backbone.conv2'?"),
        (dict(hparams=["optimizer.lrr"]), "'optimizer.lrr', which the config does not have: 'lrr'. Did you mean 'lr'?"),
        (dict(hparams=["optimizer"]), "'optimizer', which is a section or a list, not a value; .* 'optimizer.type'"),
        (dict(hparams=["data.train.pipeline"]), "'data.train.pipeline', which is a section or a list"),
        (dict(hparams=["data.train.pipeline.7"]), r"'data.train.pipeline.7', which the config does not have: '7'\."),
    ],
)
def test_names_that_match_nothing(options: dict[str, Any], message: str, make_config: Any) -> None:
    cfg = make_config(log_config=board(**options))
    with pytest.raises(ConfigError, match=message):
        train_classifier(cfg)
    assert not (Path(cfg.work_dir) / "tf_logs").exists()


def test_two_hooks_need_two_folders(make_config: Any) -> None:
    cfg = make_config(total_epochs=1)
    usual = str(Path(cfg.work_dir) / "deep" / ".." / "tf_logs")
    cfg.log_config = dict(interval=5, hooks=[EVERY, {**EVERY, "log_dir": usual}], pictures=False)
    with pytest.raises(ConfigError, match="two of these hooks write to .*tf_logs, .* another log_dir"):
        train_classifier(cfg)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_found_before_an_earlier_run_moves(
    place: str, make_config: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    before = {path: path.read_bytes() for path in Path(cfg.work_dir).glob("*.pth")}
    cfg.log_config = board(log_dir=str(tmp_path / place))
    with pytest.raises(ConfigError, match=f"TensorboardLoggerHook: log_dir {tmp_path / place} cannot be written: Not"):
        train_classifier(cfg)
    assert before and before == {path: path.read_bytes() for path in Path(cfg.work_dir).glob("*.pth")}
    assert not list(Path(cfg.work_dir).glob("earlier_*")) and (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["*"], LAYERS),
        (["backbone"], LAYERS[:2]),
        (["head.fc", "*.conv1"], [LAYERS[0], LAYERS[2]]),
        (["backbone.conv[12]"], LAYERS[:2]),
        ([], []),
    ],
)
def test_names_of_layers(patterns: list[str], chosen: list[str], make_config: Any) -> None:
    session = Session(Place(), torch.device("cpu"), get_logger())
    import tiny_parts  # noqa: F401

    assert chosen_layers(make_model(read_settings(make_config(**QUANT)), session), patterns) == chosen

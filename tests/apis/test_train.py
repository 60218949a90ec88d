"""Training from a config: what it writes, what its switches do, how it stops."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.apis import test_classifier as classify
from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError, TrainingError

QUANT = dict(
    type="mTransformerV2",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4), Linear=dict(type="LSQLinear", num_bit_w=8, num_bit_a=8)
    ),
)
LINE = re.compile(
    r"Epoch \[1\]\[5/12\]\tlr: \d\.\d{3}e-\d\d, eta: \d+:\d\d:\d\d, time: \d+\.\d{3}, data_time: \d+\.\d{3}, "
    r"memory: \d+, loss: \d+\.\d{4}, top-1: \d+\.\d{4}, top-5: \d+\.\d{4}\n"
)


def log_text(cfg: Config) -> str:
    return next(Path(cfg.work_dir).glob("*.log")).read_text()


def records(cfg: Config, mode: str) -> list[dict[str, Any]]:
    lines = (Path(cfg.work_dir) / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["mode"] == mode]


def weights(cfg: Config, name: str = "latest.pth") -> dict[str, torch.Tensor]:
    return torch.load(Path(cfg.work_dir) / name, weights_only=True)["state_dict"]


def test_work_directory(make_config: Any, capsys: Any) -> None:
    tensorboard = dict(
        interval=5, hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHookV2")], pictures=False
    )
    cfg = make_config(log_config=tensorboard)
    summary = train_classifier(cfg)
    folder = Path(cfg.work_dir)
    names = {path.name for path in folder.iterdir()}
    expected = {"latest.pth", "epoch_1.pth", "epoch_2.pth", "best_top-1.pth", "config.py", "log.jsonl", "summary.json"}
    assert expected | {"tf_logs"} <= names
    assert list((folder / "tf_logs").glob("events.*"))
    text = log_text(cfg)
    first = [line for line in text.splitlines() if " - INFO - " in line][:3]
    assert "Start running, host:" in first[0] and str(folder) in first[0]
    assert "workflow: [('train', 1)], max: " in first[1] and "Environment:" in first[2]
    assert LINE.search(text)
    last = text.strip().splitlines()[-2:]
    assert "Training time: 0:00:" in last[0] and "Best validation top-1" in last[1]
    train, val = records(cfg, "train"), records(cfg, "val")
    assert [(r["epoch"], r["iter"]) for r in train] == [(e, i) for e in (1, 2) for i in (5, 10, 12)]
    assert {"lr", "time", "data_time", "memory", "loss", "top-1", "top-5"} <= train[0].keys()
    assert [set(r) for r in val] == [{"mode", "epoch", "iter", "images", "loss", "top-1", "top-5"}] * 2
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["float"]["top1"] == max(r["top-1"] for r in val)
    assert "quantized" not in summary and summary["model_size"]["float_kib"] > 0
    assert "float top-1" in capsys.readouterr().out
    assert Config.fromfile(folder / "config.py").total_epochs == 2


def test_checkpoint_rebuilds_its_config(make_config: Any) -> None:
    cfg = make_config(total_epochs=1)
    train_classifier(cfg)
    meta = torch.load(f"{cfg.work_dir}/latest.pth", weights_only=True)["meta"]
    assert meta["CLASSES"] == tuple("0123456789")
    assert {"lbitcls_version", "epoch", "iter", "seed"} <= meta.keys()
    assert Config.fromstring(meta["config"]).model == cfg.model


def test_same_seed_same_weights_other_seed_others(make_config: Any) -> None:
    runs = [make_config(f"run{i}", total_epochs=1, seed=seed) for i, seed in enumerate((7, 7, 8))]
    for cfg in runs:
        train_classifier(cfg)
    a, b, c = (weights(cfg)["head.fc.weight"] for cfg in runs)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_delayed_quantization(make_config: Any) -> None:
    cfg = make_config(total_epochs=3, quant_transformer=QUANT, calibration=dict(epoch=2, num_batches=2))
    cfg.evaluation.interval = 3  # the end of the float phase is validated all the same
    summary = train_classifier(cfg)
    assert summary["float"]["epoch"] == 2 and summary["quantized"]["epoch"] == 3
    assert weights(cfg, "best_float_top-1.pth")["backbone.conv1.weight_quantizer.enabled"].item() is False
    assert weights(cfg, "best_top-1.pth")["backbone.conv1.weight_quantizer.enabled"].item() is True
    assert "Quantization is on from epoch 3: 6 quantizers" in log_text(cfg)
    size = summary["model_size"]
    assert size["quantized_kib"] < size["float_kib"]


def test_float_phase_is_float_training(make_config: Any) -> None:
    plain = make_config("plain", total_epochs=1)
    later = make_config("later", total_epochs=2, quant_transformer=QUANT, calibration=dict(epoch=1))
    plain.lr_config = later.lr_config = dict(policy="fixed")
    train_classifier(plain)
    train_classifier(later)
    a, b = weights(plain, "epoch_1.pth"), weights(later, "epoch_1.pth")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_quantized_from_the_start(make_config: Any) -> None:
    cfg = make_config(total_epochs=1, quant_transformer=QUANT)
    summary = train_classifier(cfg)
    assert "float" not in summary and summary["quantized"]["top1"] > 0


def test_not_finite_stops_and_keeps_the_good(make_config: Any) -> None:
    cfg = make_config(total_epochs=3, custom_hooks=[dict(type="Poison", at=17)])
    with pytest.raises(TrainingError, match=r"epoch 2, iteration 6 .*Lower optimizer\.lr"):
        train_classifier(cfg)
    assert all(torch.isfinite(value).all() for value in weights(cfg).values())
    assert not (Path(cfg.work_dir) / "epoch_2.pth").exists()


def test_not_finite_weight_is_not_saved(make_config: Any) -> None:
    """The last step of an epoch broke a weight; no loss has shown it yet."""
    cfg = make_config(checkpoint_config=dict(interval=5, by_epoch=False), custom_hooks=[dict(type="Spoil", at=10)])
    with pytest.raises(TrainingError, match="a weight is not finite"):
        train_classifier(cfg)
    assert {path.name for path in Path(cfg.work_dir).glob("iter_*")} == {"iter_5.pth"}


SWITCHES = {
    "channels_last": dict(channels_last=True),
    "bf16": dict(amp=dict(dtype="bf16")),
    "fp16 on a CPU": dict(fp16=dict(loss_scale=512.0)),
    "clip": dict(optimizer_config=dict(grad_clip=dict(max_norm=1.0, norm_type=2))),
    "deterministic": dict(deterministic=True),
    "mixup": {},
    "workflow": dict(workflow=[("train", 1), ("val", 1)]),
    "no validation set": {},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_train(make_config: Any, switch: str) -> None:
    cfg = make_config(total_epochs=1, **SWITCHES[switch])
    if switch == "mixup":
        cfg.model.train_cfg = dict(augments=dict(type="BatchMixup", alpha=0.2))
    if switch == "no validation set":
        del cfg.data["val"]
        cfg.evaluation = None
    try:
        summary = train_classifier(cfg)
    finally:
        torch.use_deterministic_algorithms(False)
    loss = [record["loss"] for record in records(cfg, "train")]
    assert loss[-1] < loss[0] < 3
    assert ("float" in summary) is (switch != "no validation set")
    assert ("grad_norm" in records(cfg, "train")[0]) is (switch == "clip")
    if switch == "fp16 on a CPU":
        assert "bfloat16" in log_text(cfg)


@pytest.mark.slow
def test_compiled_equals_eager(make_config: Any, compiler: None) -> None:
    eager, compiled = make_config("eager", total_epochs=1), make_config("compiled", total_epochs=1, compile=True)
    for cfg in (eager, compiled):
        cfg.model.head.dropout = 0.0
        train_classifier(cfg)
    assert weights(eager).keys() == weights(compiled).keys()
    for name, value in weights(eager).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-2, atol=1e-3)


def test_ema_is_what_is_validated_and_saved(make_config: Any) -> None:
    from lbitcls.apis import test_classifier as classify

    cfg = make_config(ema=dict(decay=0.9))
    train_classifier(cfg)
    checkpoint = torch.load(f"{cfg.work_dir}/latest.pth", weights_only=True)
    assert not torch.equal(checkpoint["state_dict"]["head.fc.weight"], checkpoint["train_state_dict"]["head.fc.weight"])
    assert classify(cfg, f"{cfg.work_dir}/latest.pth")["top-1"] == records(cfg, "val")[-1]["top-1"]


def test_load_from(make_config: Any) -> None:
    first = make_config("first", total_epochs=1)
    train_classifier(first)
    second = make_config("second", total_epochs=1, load_from=f"{first.work_dir}/best_top-1.pth")
    second.optimizer.lr = 0.0
    train_classifier(second)
    assert torch.equal(weights(second)["head.fc.weight"], weights(first, "best_top-1.pth")["head.fc.weight"])
    assert ": 14 of 14 tensors" in log_text(second)
    torch.save({"x": torch.zeros(3)}, f"{first.work_dir}/x.pth")
    with pytest.raises(CheckpointError, match="nothing in"):
        train_classifier(make_config("third", load_from=f"{first.work_dir}/x.pth"))


def test_hook_of_ones_own(make_config: Any) -> None:
    cfg = make_config(total_epochs=1, custom_hooks=[dict(type="Fingerprint", priority="LOW")], resume_from="")
    train_classifier(cfg)
    assert (Path(cfg.work_dir) / "rank_0.pt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer.type": "SDG"}, "Did you mean 'SGD'"),
        ({"optimizer_config.cumulative": 2}, "Did you mean 'cumulative_iters'"),
        ({"lr_config.policy": "stepp"}, "unknown policy 'stepp'"),
        ({"evaluation.intervall": 2}, "Did you mean 'interval'"),
        ({"checkpoint_config.max_keep": 2}, "Did you mean 'max_keep_ckpts'"),
        ({"log_config.hooks": [dict(type="TextLogger")]}, "Did you mean 'TextLoggerHook'"),
        ({"log_config.intervals": 3}, "Did you mean 'interval'"),
        ({"custom_hooks": [dict(type="EndAtt")]}, "Did you mean 'EndAt'"),
        ({"custom_imports.imports": ["no_such_module"]}, "no_such_module cannot be imported"),
        ({"data.sample_per_gpu": 2}, "Did you mean 'samples_per_gpu'"),
        ({"total_epochs": 0}, "total_epochs must be an integer ≥ 1"),
        ({"seed": -1}, "seed must be an integer"),
        ({"model.head.num_classes": 9}, "9 classes"),
        ({"calibration": dict(epoch=1)}, "no quant_transformer"),
        ({"quant_transformer": QUANT, "calibration": dict(epoch=2)}, "only epochs 0 to 1"),
        ({"quant_transformer": QUANT, "calibration": dict(epochs=1)}, "Did you mean 'epoch'"),
        ({"ema": dict(momentum=0.1)}, "ema does not accept 'momentum'"),
        ({"ema": "yes"}, r"ema must be True or a dict\(…\); got 'yes'"),
        ({"custom_hooks": dict(type="EndAt")}, r"custom_hooks must be a list, each a dict\(…\); got {'type': 'EndAt'}"),
        ({"custom_hooks": ["EndAt"]}, r"custom_hooks\.0 must be a dict\(…\); got 'EndAt'"),
        ({"log_config.hooks": 5}, r"log_config\.hooks must be a list, each a dict\(…\); got 5"),
        ({"workflow": 5}, "workflow must be a list .*; got 5"),
        ({"gpu_ids": 1}, r"gpu_ids must be a list of integers ≥ 0, such as \[0\]; got 1"),
        ({"data.drop_last": True, "data.samples_per_gpu": 2000}, "leaves no batch: data.train has 1437 images"),
        ({"workflow": [("train", 1), ("vall", 1)]}, "workflow must be a list"),
        ({"dist_params": dict(backend="nccl", port=3)}, "dist_params does not accept 'port'"),
        ({"log_level": "LOUD"}, "log_level"),
        ({"device": "tpu"}, "a device must be"),
        ({"optimizer": None}, "training needs optimizer"),
    ],
)
def test_mistakes_in_the_config(make_config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_classifier(make_config(options=options))


def test_evaluation_without_a_validation_set(make_config: Any) -> None:
    cfg = make_config()
    del cfg.data["val"]
    with pytest.raises(ConfigError, match="no-validate"):
        train_classifier(cfg)
    cfg = make_config(total_epochs=1)
    train_classifier(cfg, validate=False)
    assert not records(cfg, "val") and not (Path(cfg.work_dir) / "best_top-1.pth").exists()


def test_num_threads_is_a_number_from_1(repo_root: Path, capsys: pytest.CaptureFixture) -> None:
    config = str(repo_root / "configs/quickstart/digits_lsq_4w4f.py")
    assert main(["train", config, "--options", "num_threads=0"]) == 2
    assert "num_threads must be an integer ≥ 1; got 0" in capsys.readouterr().err


@pytest.mark.parametrize("number", [True, 100])
def test_accuracy_on_the_training_set(number: Any, make_config: Any) -> None:
    """In eval mode and on the pipeline of validation: what a test of these images gives; the training is the same."""
    plain = make_config("plain", total_epochs=1)
    train_classifier(plain)
    cfg = make_config(total_epochs=1, evaluation=dict(train=number, metric=["precision"]))
    train_classifier(cfg)
    (measured,) = records(cfg, "train_eval")
    assert set(measured) == {"mode", "epoch", "iter", "images", "loss", "top-1", "top-5"}
    assert f"Epoch(train_eval) [1][12]\tloss: {measured['loss']:.4f}, top-1: " in log_text(cfg)
    if number is True:
        cfg.data.test = {**cfg.data.train, "pipeline": cfg.data.val.pipeline}
        tested = classify(cfg, Path(cfg.work_dir) / "latest.pth")
        assert (tested["top-1"], tested["total"]) == (pytest.approx(measured["top-1"]), 1437)
    before, after = weights(plain), weights(cfg)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_accuracy_on_the_training_set_wants_a_number(make_config: Any) -> None:
    with pytest.raises(ConfigError, match="a number of images ≥ 1; got 'all'"):
        train_classifier(make_config(evaluation=dict(train="all")))


def test_no_checkpoints_during_training(make_config: Any) -> None:
    """`checkpoint_config = None`: the best weights and the last position alone are written."""
    cfg = make_config(total_epochs=2, checkpoint_config=None)
    train_classifier(cfg)
    assert {path.name for path in Path(cfg.work_dir).glob("*.pth")} == {"best_top-1.pth", "latest.pth", "epoch_2.pth"}


def test_what_the_log_says_first(make_config: Any) -> None:
    cfg = make_config(total_epochs=1, options={"model.backbone.frozen": True})
    train_classifier(cfg)
    said = log_text(cfg).partition("Epoch [1]")[0]
    assert "Data: train 1,437 images, val 360 images; 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in said
    assert "A batch: img (128, 1, 8, 8), gt_label (128,)\n" in said
    found = re.search(
        r"Parameters: ([\d,]+) in all, (\d+) trained, ([\d,]+) frozen; backbone: (.+) frozen; head: (.+)\n", said
    )
    assert found is not None and found[2] == "170" and found[4] == found[3] and found[5] == "170 trained"

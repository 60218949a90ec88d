"""Runs with `QuantStatsHook`: the same as without it, resumed bit for bit, its records, and its warnings."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from event_files import board, read, steps
from test_distributed import finish, launch
from test_resume import content, records, same, same_run
from tiny_parts import Ended

from lbitcls.apis import train_classifier
from lbitcls.core.hooks.log import QUANTIZERS
from lbitcls.quant import named_quantizers
from lbitcls.registry import HOOKS
from lbitcls.tracking import quant_stats
from lbitcls.tracking.quant_stats import QuantStatsHook
from lbitcls.tracking.step_watch import StepWatch
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError

HOOK = dict(type="QuantStatsHook", interval=5, images=16)
LSQ = dict(
    quant_transformer=dict(
        type="mTransformerV2",
        quan_policy=dict(
            Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4),
            Linear=dict(type="LSQLinear", num_bit_w=8, num_bit_a=8),
        ),
    ),
    calibration=dict(epoch=1, num_batches=2),
    kernels="plain",
)


def stats(cfg: Config) -> list[dict[str, Any]]:
    return [record for record in records(cfg.work_dir) if record["mode"] == QUANTIZERS]


@pytest.mark.parametrize(
    "sections",
    [
        dict(ema=dict(decay=0.9), optimizer_config=dict(cumulative_iters=2)),
        pytest.param(dict(amp="bf16"), marks=pytest.mark.slow),
        pytest.param(dict(compile=True, kernels="fused"), marks=pytest.mark.slow),
    ],
    ids=["accumulated, averaged", "bf16", "compiled"],
)
def test_a_run_is_the_same_with_and_without(make_config: Any, sections: dict[str, Any]) -> None:
    plain, watched = (make_config(work, **{**LSQ, **sections}) for work in ("plain", "watched"))
    watched.custom_hooks = [HOOK]
    watched.log_config = {**board(), "pictures": False}
    for cfg in (plain, watched):
        train_classifier(cfg)
    one, other = content(plain.work_dir), content(watched.work_dir)
    assert other["hooks"].pop("QuantStatsHook")["reversals"].keys() == {
        "backbone.conv1",
        "backbone.conv2",
        "head.fc",
    }
    told = stats(watched)
    other["hooks"]["JsonLoggerHook"]["records"] -= len(told)
    same(one, other)
    assert [(r["epoch"], r["iter"]) for r in told] == [(2, 3), (2, 8), (2, 12)], "quantizers are on from epoch 2"
    measures = told[-1]["layers"]["backbone.conv2"]
    assert 0 < measures["weight"]["levels_used"] <= measures["weight"]["levels"] == 16
    assert 0 <= measures["weight"]["oscillating"] < 0.5 and "oscillating" not in measures["input"]
    assert all(measures[role][name] > 0 for role in measures for name in ("scale", "sqnr_db", "gradient_ratio"))
    assert steps(read(watched), "train_input_clipped/head.fc") == [15, 20, 24]


def test_a_resumed_run_has_the_same_state_and_records(make_config: Any) -> None:
    saving = dict(checkpoint_config=dict(interval=7, by_epoch=False), **LSQ)
    whole, ended = (make_config(name, custom_hooks=[HOOK], **saving) for name in ("whole", "ended"))
    train_classifier(whole)
    stop = dict(type="EndAt", event="after_iter", at=22, priority=99)
    with contextlib.suppress(Ended):
        train_classifier(Config({**ended._cfg_dict, "custom_hooks": [HOOK, stop]}))
        pytest.fail("the run was not ended")
    train_classifier(ended, resume=True)
    same_run(whole, ended)
    assert len(stats(ended)) == len(stats(whole)) == 3


def test_an_ill_layer_is_told_once(make_config: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Shrink(QuantStatsHook):
        """Shrinks a scale before each inspection."""

        def after_iter(self, runner: Any) -> None:
            with torch.no_grad():
                runner.module.backbone.conv2.input_quantizer.scale.fill_(1e-5)
            super().after_iter(runner)

    HOOKS.register_module(module=Shrink, force=True)
    cfg = make_config(custom_hooks=[{**HOOK, "type": "Shrink"}], **LSQ)
    with caplog.at_level(logging.WARNING):
        train_classifier(cfg)
    log = "\n".join(path.read_text() for path in Path(cfg.work_dir).glob("*.log"))
    assert log.count("The scale of the input quantizer of backbone.conv2 collapsed to 1e-05") == 1
    assert "Calibrate again" in log
    assert ["scale collapsed", "backbone.conv2", "input"] in content(cfg.work_dir)["hooks"]["Shrink"]["warned"]


def test_a_failed_inspection_does_not_end_the_run(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(quant_stats, "take_signs", fail)
    cfg = make_config(custom_hooks=[HOOK], **LSQ)
    train_classifier(cfg)
    log = "\n".join(path.read_text() for path in Path(cfg.work_dir).glob("*.log"))
    assert log.count("QuantStatsHook: Inspecting no more: RuntimeError: no memory") == 1 and not stats(cfg)


def test_a_model_without_quantizers(make_config: Any) -> None:
    with pytest.raises(ConfigError, match="QuantStatsHook needs quantizers; the model has none"):
        train_classifier(make_config(custom_hooks=[HOOK]))
    with pytest.raises(ConfigError, match="QuantStatsHook: interval must be an integer ≥ 1; got 0"):
        QuantStatsHook(interval=0)


def test_integers_that_turn_back_and_gradients_by_hand() -> None:
    from lbitcls.quant import build_quant_layer

    torch.manual_seed(0)
    layer = build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=4), torch.nn.Linear(8, 8))
    model, x = torch.nn.Sequential(layer), torch.rand(4, 8)
    model(x).square().sum().backward()
    assert all(quantizer.is_initialized for _, quantizer in named_quantizers(model))
    watch, scale = StepWatch(), layer.weight_quantizer.scale.item()
    for integer in (0, 1, 2, 1):  # up, up, back: one of eight rows oscillates
        with torch.no_grad():
            layer.weight[0] = integer * scale
        watch.follow(model, starts=integer == 0)
    assert watch.oscillating()["0"] == 1 / 8
    ratios = watch.gradient_ratios()
    w, s = layer.weight, layer.weight_quantizer.scale
    assert ratios.keys() == {("0", "weight"), ("0", "input")}
    again = StepWatch()
    again.follow(model, starts=True)
    expected = (s.grad.abs() / s.abs()) / (w.grad.norm() / w.norm())
    assert again.gradient_ratios()["0", "weight"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.slow
def test_processes_train_the_same_with_it(make_config: Any, tmp_path: Path) -> None:
    cfg = make_config(custom_hooks=[HOOK, dict(type="Fingerprint")], **LSQ)
    cfg.data.samples_per_gpu = 64
    cfg.dump(tmp_path / "tiny.py")
    code, _, errors = finish(launch(tmp_path / "tiny.py"))
    assert code == 0, errors[-3000:]
    first, second = (torch.load(f"{cfg.work_dir}/rank_{rank}.pt") for rank in (0, 1))
    names = [name for name in first if "running" not in name]
    assert [first[name] for name in names] == [second[name] for name in names]
    assert len(stats(cfg)) == 3

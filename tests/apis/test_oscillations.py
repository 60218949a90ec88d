"""Runs with hooks against oscillations and with equal averages: records, resuming, EMA, processes, compiled models."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import finish, launch
from test_resume import content, records, same_run
from tiny_parts import Ended

from lbitcls.apis import init_model, train_classifier
from lbitcls.core.hooks.precise_bn import estimate_norms
from lbitcls.datasets import build_dataloader, build_dataset
from lbitcls.quant.weight_oscillations import read_integers
from lbitcls.utils.config import Config

FREEZE = dict(type="FreezeOscillationsHook", threshold=[0.16, 0.14], momentum=0.1)
DAMPEN = dict(type="DampenOscillationsHook", weight=[0, 0.01])


def quantized(method: str, **options: Any) -> dict[str, Any]:
    """Sections of a run with a learning rate at which many weights oscillate within 24 steps."""
    entry = dict(type=f"{method}Conv", num_bit_w=3, num_bit_a=4, per_channel=True)
    return dict(
        quant_transformer=dict(type="mTransformerV2", quan_policy=dict(Conv2d=entry), **options),
        calibration=dict(num_batches=2),
        optimizer=dict(type="SGD", lr=1.0 if method == "LSQ" else 3.0),
        lr_config=dict(policy="fixed"),
        kernels="plain",
    )


def frozen_weights(checkpoint: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    return checkpoint["hooks"]["FreezeOscillationsHook"]


@pytest.mark.parametrize(
    ("method", "average"),
    [
        ("UQ", dict(kind="swa", start=1, interval=3, bn_batches=2)),
        pytest.param("LSQ", None, marks=pytest.mark.slow),
        pytest.param("DoReFa", dict(decay=0.9, bn_batches=3), marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_bit_for_bit(make_config: Any, method: str, average: Any) -> None:
    hooks = dict(custom_hooks=[FREEZE, DAMPEN], ema=average)
    sections = dict(quantized(method), **hooks, checkpoint_config=dict(interval=7, by_epoch=False))
    whole, ended = (make_config(name, **sections) for name in ("whole", "ended"))
    train_classifier(whole)
    stop = dict(type="EndAt", event="after_iter", at=17, priority=99)
    with contextlib.suppress(Ended):
        train_classifier(Config({**ended._cfg_dict, "custom_hooks": [FREEZE, DAMPEN, stop]}))
        pytest.fail("the run was not ended")
    train_classifier(ended, resume=True)
    same_run(whole, ended)

    last = [record for record in records(whole.work_dir) if record["mode"] == "train"][-1]
    states = frozen_weights(content(whole.work_dir))
    total = sum(state["frozen"].numel() for state in states.values())
    frozen = sum(int(state["frozen"].sum()) for state in states.values())
    assert frozen > 0 and last["frozen"] == pytest.approx(100 * frozen / total)
    assert 0 < last["frozen"] + last["oscillating"] < 100 and last["loss_dampening"] > 0
    model = init_model(whole, f"{whole.work_dir}/latest.pth", device="cpu")  # the average, if there is one
    for name, state in states.items():
        assert torch.equal(read_integers(model.get_submodule(name))[state["frozen"]].short(), *kept(state))


def kept(state: dict[str, torch.Tensor]) -> tuple[torch.Tensor]:
    return (state["integers"][state["frozen"]],)


@pytest.mark.parametrize(
    "average", [dict(kind="swa", start=1), pytest.param(dict(decay=0.5, bn_batches=100), marks=pytest.mark.slow)]
)
def test_saved_statistics_are_those_of_the_averaged_weights(make_config: Any, average: Any) -> None:
    """After an epoch: averages over the batches of the next epoch, for the averaged weights."""
    cfg = make_config(ema=average)
    train_classifier(cfg)
    saved = content(cfg.work_dir)["state_dict"]
    model = init_model(cfg, f"{cfg.work_dir}/latest.pth", device="cpu")
    model.backbone.bn1.reset_running_stats()
    model.train()
    loader = build_dataloader(build_dataset(cfg.data.train), cfg.data.samples_per_gpu, 0, shuffle=True, seed=cfg.seed)
    estimate_norms(model, (batch["img"] for batch in loader.iterate(cfg.total_epochs)))
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(model.backbone.bn1, name), saved[f"backbone.bn1.{name}"])


def test_an_equal_average_of_the_epochs_weights(make_config: Any) -> None:
    """The average that a run saves is that of the weights which it trained, epoch by epoch."""
    cfg = make_config(ema=dict(kind="swa", start=1), total_epochs=3)
    train_classifier(cfg)
    name = "backbone.conv1.weight"
    weights = [content(cfg.work_dir, f"epoch_{epoch}.pth")["train_state_dict"][name] for epoch in (2, 3)]
    mean = torch.stack(weights).double().mean(0).float()
    torch.testing.assert_close(content(cfg.work_dir)["state_dict"][name], mean)
    assert content(cfg.work_dir)["ema"]["averaged"] == 2


@pytest.mark.slow
def test_processes_freeze_the_same_weights(make_config: Any, tmp_path: Path) -> None:
    """With folded BatchNorm too, whose running statistics differ between processes within a step."""
    hooks = [FREEZE, DAMPEN, dict(type="Fingerprint")]
    cfg = make_config(custom_hooks=hooks, ema=dict(kind="swa", start=1), **quantized("LSQ", fold_bn=True))
    cfg.data.samples_per_gpu = 64
    cfg.dump(tmp_path / "tiny.py")
    code, _, errors = finish(launch(tmp_path / "tiny.py"))
    assert code == 0, errors[-3000:]
    first, second = (torch.load(f"{cfg.work_dir}/rank_{rank}.pt") for rank in (0, 1))
    names = [name for name in first if "running" not in name]
    assert [first[name] for name in names] == [second[name] for name in names]
    assert sum(int(state["frozen"].sum()) for state in frozen_weights(content(cfg.work_dir)).values()) > 0

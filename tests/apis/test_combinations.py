"""Ingredients of training in random combinations: each run has a finite loss, and resumes bit for bit."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import content, end, records, same_run

from lbitcls.apis import train_classifier
from lbitcls.utils.config import Config

METHODS = ["LSQ", "LSQPlus", "DSQ", "DoReFa", "PACT", "APoT", "UQ", "EWGS", "TorchQAT"]
FREEZE = dict(type="FreezeOscillationsHook", threshold=[0.16, 0.14], momentum=0.1)
DAMPEN = dict(type="DampenOscillationsHook", weight=[0, 0.01])
STEPS = 6  # in an epoch


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_sections: dict[str, Any]) -> str:
    """A float teacher: its checkpoint."""
    folder = tmp_path_factory.mktemp("teacher")
    train_classifier(Config({**tiny_sections, "work_dir": str(folder), "total_epochs": 1}))
    return str(folder / "latest.pth")


def quantization(draw: random.Random) -> dict[str, Any]:
    method = draw.choice(METHODS)
    normalizes = method in ("APoT", "UQ")
    bits = draw.choice([2, 3, 4])
    entry: dict[str, Any] = dict(type=f"{method}Conv", num_bit_w=bits, num_bit_a=bits)
    if draw.random() < 0.5:
        entry["weight_norm"] = not normalizes
    if method not in ("DoReFa", "PACT"):
        entry["per_channel"] = draw.random() < 0.5
    first = dict(entry, num_bit_w=8, num_bit_a=8) if method != "APoT" else entry
    special = dict(layers_name=["backbone.conv1"], convert_type=[first])
    return dict(
        quant_transformer=dict(type="mTransformerV2", quan_policy=dict(Conv2d=entry), special_layers=special),
        calibration=dict(num_batches=1, epoch=draw.choice([0, 0, 1])),
        kernels="plain",
    )


def optimization(draw: random.Random, learns: bool) -> dict[str, Any]:
    one_cycle, cosine = dict(policy="OneCycle", pct_start=0.4), dict(policy="CosineAnnealing", min_lr=0)
    paramwise: dict[str, Any] = {}
    if learns and draw.random() < 0.5:
        own = [dict(optimizer=dict(type="Adam", lr=1e-3)), dict(optimizer=dict(type="SGD", lr=0.01, momentum=0.9))]
        own += [dict(lr_mult=0.1), dict(optimizer=dict(type="AdamW", lr=1e-3), lr_config=one_cycle)]
        paramwise["quantizers"] = draw.choice([*own, dict(lr_config=cosine)])
    if draw.random() < 0.5:
        paramwise["decay_by_bits"] = {2: 3e-5, 4: 1e-3, 8: 5e-4}
    kind = draw.choice([dict(type="SGD", lr=0.3, momentum=0.9), dict(type="AdamW", lr=0.01)])
    return dict(
        optimizer=dict(kind, weight_decay=1e-4, paramwise_cfg=paramwise or None),
        lr_config=draw.choice([one_cycle, cosine]),
    )


def combination(seed: int, teacher: str) -> dict[str, Any]:
    """Return the sections of a run of 3 epochs, drawn by `seed`."""
    draw = random.Random(seed)
    sections = quantization(draw)
    method = sections["quant_transformer"]["quan_policy"]["Conv2d"]["type"].removesuffix("Conv")
    sections |= optimization(draw, learns=method not in ("DoReFa", "TorchQAT"))
    if draw.random() < 0.5:
        last = sections["quant_transformer"]["quan_policy"]["Conv2d"]["num_bit_w"]
        sections["progressive"] = dict(bits=[8, last], epochs=[1], ranges=draw.choice(["keep", "new"]))
        if draw.random() < 0.5:
            sections["progressive"]["bits"] = [last + 1, last]
    if draw.random() < 0.5:
        losses = [dict(), dict(loss="mse", label_weight=0), dict(loss="feature", modules=["backbone.bn2"])]
        sections["distill"] = dict(draw.choice(losses), teacher=dict(checkpoint=teacher))
    hooks = [hook for hook in (FREEZE, DAMPEN) if draw.random() < 0.6]
    averages = [None, dict(decay=0.9), dict(decay=0.5, bn_batches=2), dict(kind="swa", start=1, bn_batches=2)]
    averages += [dict(kind="swa", interval=2), dict(kind="swa", start=2, bn_batches=0)]
    return dict(
        sections,
        custom_hooks=hooks,
        ema=draw.choice(averages),
        amp=draw.choice([None, None, "bf16"]),
        optimizer_config=dict(cumulative_iters=draw.choice([1, 1, 2])),
        total_epochs=3,
        checkpoint_config=dict(interval=2, by_epoch=False),
    )


def trains_and_resumes(seed: int, make_config: Any, teacher: str) -> None:
    sections = combination(seed, teacher)
    whole, ended = (make_config(f"{name}_{seed}", **sections) for name in ("whole", "ended"))
    for cfg in (whole, ended):
        cfg.data.samples_per_gpu = 256
    train_classifier(whole)
    assert all(math.isfinite(record["loss"]) for record in records(whole.work_dir))
    for at in (STEPS + 3,) if seed % 2 else (STEPS - 1, 2 * STEPS + 3):
        end(ended, "after_iter", at)
        train_classifier(ended, resume=True)
        same_run(whole, ended)


@pytest.mark.parametrize("seed", range(3))
def test_a_combination_trains_and_resumes(make_config: Any, teacher: str, seed: int) -> None:
    trains_and_resumes(seed, make_config, teacher)

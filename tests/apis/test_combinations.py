"""Ingredients of training in random combinations: each run has a finite loss, and resumes bit for bit."""

from __future__ import annotations

import math
import random
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from test_resume import content, end, records, same_run
from torch import nn

from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.quant.kernels import machine
from lbitcls.utils.config import Config

METHODS = ["LSQ", "LSQPlus", "DSQ", "DoReFa", "PACT", "APoT", "UQ", "EWGS", "TorchQAT"]
FREEZE = dict(type="FreezeOscillationsHook", threshold=[0.1, 0.05], momentum=0.1)
DAMPEN = dict(type="DampenOscillationsHook", weight=[0, 0.01])
STEPS = 4  # in an epoch of batches of 384


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
    """Return the sections of a run of two epochs, drawn by `seed`."""
    draw = random.Random(seed)
    sections = quantization(draw)
    method = sections["quant_transformer"]["quan_policy"]["Conv2d"]["type"].removesuffix("Conv")
    sections |= optimization(draw, learns=method not in ("DoReFa", "TorchQAT"))
    if draw.random() < 0.5:
        last = sections["quant_transformer"]["quan_policy"]["Conv2d"]["num_bit_w"]
        sections["progressive"] = dict(bits=[8, last], epochs=[1], ranges=draw.choice(["keep", "new"]))
        if draw.random() < 0.5:
            sections["progressive"]["bits"] = [last + 1, last]
        sections["calibration"]["epoch"] = 0
    if draw.random() < 0.5:
        losses = [dict(), dict(loss="mse", label_weight=0), dict(loss="feature", modules=["backbone.bn2"])]
        sections["distill"] = dict(draw.choice(losses), teacher=dict(checkpoint=teacher))
    hooks = [hook for hook in (FREEZE, DAMPEN) if draw.random() < 0.6]
    averages = [None, dict(decay=0.9), dict(decay=0.5, bn_batches=2), dict(kind="swa", start=1, bn_batches=2)]
    averages += [dict(kind="swa", interval=2), dict(kind="swa", start=0, bn_batches=0)]
    return dict(
        sections,
        custom_hooks=hooks,
        ema=draw.choice(averages),
        amp=draw.choice([None, None, "bf16"]),
        total_epochs=2,
        checkpoint_config=dict(interval=3, by_epoch=False),
        options={"data.samples_per_gpu": 384},
    )


def trains_and_resumes(seed: int, make_config: Any, teacher: str) -> None:
    sections = combination(seed, teacher)
    whole, ended = (make_config(f"{name}_{seed}", **sections) for name in ("whole", "ended"))
    train_classifier(whole)
    assert all(math.isfinite(record["loss"]) for record in records(whole.work_dir))
    end(ended, "after_iter", STEPS + 3 if seed % 2 else STEPS)  # in the second epoch, or before the first validation
    train_classifier(ended, resume=True)
    same_run(whole, ended)


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_a_combination_trains_and_resumes(make_config: Any, teacher: str, seed: int) -> None:
    trains_and_resumes(seed, make_config, teacher)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 14))
def test_more_combinations_train_and_resume(make_config: Any, teacher: str, seed: int) -> None:
    trains_and_resumes(seed, make_config, teacher)


def taught_pair(teacher: str, **sections: Any) -> dict[str, Any]:
    """Sections of a run of two epochs and two stages with a teacher, an average, and an optimizer of quantizers."""
    own = dict(optimizer=dict(type="Adam", lr=1e-3), lr_config=dict(policy="OneCycle"))
    paramwise = dict(quantizers=own, decay_by_bits={8: 1e-3, 2: 3e-5})
    special = dict(layers_name=["backbone.conv1"], convert_type=[dict(type="LSQConv", num_bit_w=8, num_bit_a=8)])
    policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=2, num_bit_a=2))
    return dict(
        quant_transformer=dict(type="mTransformerV2", quan_policy=policy, special_layers=special),
        calibration=dict(num_batches=1),
        optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4, paramwise_cfg=paramwise),
        progressive=dict(bits=[8, 2], epochs=[1]),
        distill=dict(teacher=dict(checkpoint=teacher)),
        ema=dict(decay=0.9),
        checkpoint_config=dict(interval=3, by_epoch=False),
        options={"data.samples_per_gpu": 384},
        **sections,
    )


def decays(checkpoint: dict[str, Any]) -> list[float]:
    return [group["weight_decay"] for group in checkpoint["optimizer"]["main"]["param_groups"]]


def test_weight_decay_follows_the_bits(make_config: Any, teacher: str) -> None:
    """Both layers have 8 bits at first, and groups of their own, since only one of them changes."""
    whole, ended = (make_config(name, **taught_pair(teacher, kernels="plain")) for name in ("whole", "ended"))
    train_classifier(whole)
    assert decays(content(whole.work_dir, "iter_3.pth")) == [1e-3, 1e-4, 1e-3]
    assert decays(content(whole.work_dir)) == [1e-3, 1e-4, 3e-5]
    for at in (STEPS, STEPS + 3):
        end(ended, "after_iter", at)
        train_classifier(ended, resume=True)
        same_run(whole, ended)
        assert "with other settings" not in "".join(path.read_text() for path in Path(ended.work_dir).glob("*.log"))


@pytest.mark.slow
@pytest.mark.skipif(bool(machine.find_obstacle()), reason="this machine multiplies no 8-bit integers")
def test_a_pair_with_integer_kernels(make_config: Any, teacher: str) -> None:
    whole, ended = (make_config(name, **taught_pair(teacher, kernels="integer")) for name in ("whole", "ended"))
    train_classifier(whole)
    end(ended, "after_iter", STEPS + 3)
    train_classifier(ended, resume=True)
    same_run(whole, ended)


@pytest.mark.slow  # imports the compiler
def test_a_pair_with_a_compiled_student(make_config: Any, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student is what is compiled, and compiled again for other bits."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    resets = Mock(wraps=torch.compiler.reset)
    monkeypatch.setattr(torch.compiler, "reset", resets)
    eager = make_config("eager", **taught_pair(teacher, kernels="plain"))
    compiled = make_config("compiled", **taught_pair(teacher, kernels="plain", compile=True))
    for cfg in (eager, compiled):
        train_classifier(cfg)
    assert resets.call_count == 1
    a, b = (content(cfg.work_dir)["state_dict"]["head.fc.weight"] for cfg in (eager, compiled))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-2)


def test_other_bits_release_frozen_weights(make_config: Any) -> None:
    """3-bit integers mean nothing with 2 bits: tracking starts over, also where a run resumes between two stages."""
    entry = dict(type="LSQConv", num_bit_w=2, num_bit_a=4)
    sections = dict(
        quant_transformer=dict(type="mTransformerV2", quan_policy=dict(Conv2d=entry)),
        progressive=dict(bits=[(8, 8), (3, 8), (2, 4)], epochs=[1, 1]),
        calibration=dict(num_batches=1),
        custom_hooks=[FREEZE],
        total_epochs=3,
        optimizer=dict(type="SGD", lr=1.0),
        lr_config=dict(policy="fixed"),
        options={"data.samples_per_gpu": 128},
        kernels="plain",
    )
    whole, ended = make_config("whole", **sections), make_config("ended", **sections)
    train_classifier(whole)
    states = [content(whole.work_dir, f"epoch_{epoch}.pth")["hooks"] for epoch in (1, 2, 3)]
    assert "FreezeOscillationsHook" not in states[0]  # 8 bits: more than max_bits
    for name, three in states[1]["FreezeOscillationsHook"].items():
        two = states[2]["FreezeOscillationsHook"][name]
        assert (three["bits"], two["bits"]) == (3, 2)
        assert two["integers"].min() >= -2 and two["integers"].max() <= 1
    before = states[1]["FreezeOscillationsHook"].values()
    assert max(int(state["integers"].max()) for state in before) > 1
    assert any(state["frozen"].any() for state in before)
    end(ended, "after_epoch", 3)  # the newest checkpoint is that of the end of the stage before
    train_classifier(ended, resume=True)
    same_run(whole, ended)


MISUSE = [
    (dict(custom_hooks=[FREEZE]), "FreezeOscillationsHook needs quantized weights of at most 4 bits"),
    (dict(custom_hooks=[DAMPEN]), "DampenOscillationsHook needs quantized weights"),
    (dict(distill=dict(teacher=dict(checkpoint="none.pth"))), "distill.teacher: there is no checkpoint none.pth"),
]


@pytest.mark.parametrize(("section", "message"), MISUSE)
def test_check_and_train_tell_the_same(write_config: Any, capsys: Any, section: dict[str, Any], message: str) -> None:
    config = str(write_config(**section))
    for verb in ("check", "train"):
        assert main([verb, config]) != 0
        errors = capsys.readouterr().err
        assert message in errors and "Traceback" not in errors

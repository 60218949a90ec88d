"""Runs in phases: the head on fixed images, the whole network on random ones, then quantized from the best weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.apis import train_classifier
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.hooks.unfreeze import UnfreezeHook
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError

FIXED = [dict(type="Normalize", mean=[0.305], std=[0.376]), dict(type="Collect", keys=["img", "gt_label"])]
RANDOM = [dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"), *FIXED]


def phases(make_config: Any, work: str, cache: Any = None, hooks: Any = (), **more: Any) -> Config:
    """Two epochs of the head, two of the whole network; an epoch has 12 iterations."""
    cfg: Config = make_config(
        work,
        total_epochs=more.pop("total_epochs", 4),
        feature_cache=dict(pipeline=FIXED) if cache is None else cache,
        custom_hooks=[dict(type="UnfreezeHook", epoch=2, lr_mult=0.1), *hooks],
        lr_config=dict(policy="CosineAnnealing", min_lr=0, by_epoch=False, restarts=[2]),
        **more,
    )
    cfg.data.train.pipeline = RANDOM
    return cfg


def quantized(make_config: Any, work: str, hooks: Any = (), **more: Any) -> Config:
    policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    cfg = phases(
        *(make_config, work, None, hooks),
        quant_transformer=dict(type="mTransformerV2", quan_policy=policy),
        calibration=dict(epoch=3, num_batches=2, reload_best=True),
        kernels="plain",
        **more,
    )
    cfg.lr_config = dict(policy="step", step=[2], gamma=400.0)  # the third epoch spoils the weights
    return cfg


def saved(cfg: Config, name: str = "latest.pth") -> Any:
    return read_checkpoint(Path(cfg.work_dir) / name)


def assert_equal(a: Any, b: Any) -> None:
    assert a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_fixed_images_while_frozen_then_random_ones(make_config: Any) -> None:
    """The frozen phase equals one on fixed images without a cache; the next phase does not."""
    cfg = phases(make_config, "phases")
    train_classifier(cfg)
    log = next(Path(cfg.work_dir).glob("*.log")).read_text()
    assert "Keeping the features of 1437 images" in log and "Dropping the features" in log
    plain = make_config(
        "plain",
        total_epochs=4,
        custom_hooks=[dict(type="UnfreezeHook", epoch=2, lr_mult=0.1)],
        lr_config=cfg.lr_config,
    )
    train_classifier(plain)  # fixed images throughout
    early, late = ("epoch_2.pth", "epoch_3.pth")
    assert_equal(saved(cfg, early)["state_dict"], saved(plain, early)["state_dict"])
    key = "backbone.conv1.weight"
    assert not torch.equal(saved(cfg, late)["state_dict"][key], saved(plain, late)["state_dict"][key])


@pytest.mark.parametrize("max_mib", [1024.0, pytest.param(0.001, marks=pytest.mark.slow)])
def test_phases_resume_bit_identical(make_config: Any, max_mib: float) -> None:
    """Also if the features do not fit: the pipeline depends on the position, not on the cache."""
    from tiny_parts import Ended

    cache = dict(pipeline=FIXED, max_mib=max_mib)
    whole = phases(make_config, "whole", cache)
    train_classifier(whole)
    for at in (17, 31):  # while the head trains alone, and later
        often = dict(checkpoint_config=dict(by_epoch=False, interval=5))
        cut = phases(make_config, f"cut{at}", cache, [dict(type="EndAt", event="after_iter", at=at)], **often)
        with pytest.raises(Ended):
            train_classifier(cut)
        cut.custom_hooks = cut.custom_hooks[:-1]
        train_classifier(cut, resume=True)
        assert_equal(saved(whole)["state_dict"], saved(cut)["state_dict"])


@pytest.mark.parametrize("ema", [None, dict(decay=0.5)])
def test_the_whole_network_starts_from_the_best_head(make_config: Any, ema: Any, monkeypatch: Any) -> None:
    """Not from the last one, which a high rate spoils; also after a resume, which reloads at the phase's start only."""
    from tiny_parts import Ended

    seen: list[dict[str, Any]] = []
    epoch_start = UnfreezeHook.before_epoch

    def spy(self: Any, runner: Any) -> None:
        epoch_start(self, runner)
        if (runner.epoch, runner.inner_iter) == (2, 0):
            seen.append({name: value.clone() for name, value in runner.module.state_dict().items()})

    monkeypatch.setattr(UnfreezeHook, "before_epoch", spy)

    def config(work: str, hooks: Any = (), **more: Any) -> Config:
        cfg = phases(make_config, work, None, hooks, ema=ema, **more)
        cfg.custom_hooks[0]["reload_best"] = True
        cfg.lr_config = dict(policy="step", step=[1], gamma=3000.0)  # the second epoch spoils the head
        return cfg

    whole = config("whole", total_epochs=3)
    train_classifier(whole)
    first, spoiled = (saved(whole, f"epoch_{number}.pth")["state_dict"] for number in (1, 2))
    assert_equal(seen[0], first)
    assert not torch.equal(spoiled["head.fc.weight"], first["head.fc.weight"])
    often = dict(checkpoint_config=dict(by_epoch=False, interval=4))
    cut = config("cut", [dict(type="EndAt", event="after_iter", at=29)], total_epochs=3, **often)
    with pytest.raises(Ended):
        train_classifier(cut)
    cut.custom_hooks = cut.custom_hooks[:-1]
    train_classifier(cut, resume=True)
    assert_equal(saved(whole)["state_dict"], saved(cut)["state_dict"])


def test_random_steps_in_the_cache_are_refused(make_config: Any) -> None:
    with pytest.raises(ConfigError, match="the pipeline of feature_cache has random steps: RandomFlip"):
        train_classifier(phases(make_config, "refused", dict(pipeline=RANDOM)))


SWA = pytest.param(dict(kind="swa", start=1), marks=pytest.mark.slow)


@pytest.mark.parametrize("ema", [pytest.param(None, marks=pytest.mark.slow), dict(decay=0.5), SWA])
def test_quantization_starts_from_the_best_float_weights(make_config: Any, ema: Any, monkeypatch: Any) -> None:
    from tiny_parts import Ended

    seen: dict[str, Any] = {}
    load = EvaluationHook.load_best

    def spy(self: Any, runner: Any, model: Any) -> bool:
        read = load(self, runner, model)
        seen.setdefault(runner.phase, {name: value.clone() for name, value in model.state_dict().items()})
        return read

    monkeypatch.setattr(EvaluationHook, "load_best", spy)
    whole = quantized(make_config, "whole", ema=ema)
    train_classifier(whole)
    best = saved(whole, "best_float_top-1.pth")
    assert best["meta"]["epoch"] < 3
    assert_equal(seen["float"], best["state_dict"])
    last = saved(whole, "epoch_3.pth")["state_dict"]
    assert not torch.equal(last["head.fc.weight"], best["state_dict"]["head.fc.weight"])
    for at in (36, 40):  # before the calibration, and after it
        often = dict(checkpoint_config=dict(by_epoch=False, interval=4))
        cut = quantized(make_config, f"cut{at}", [dict(type="EndAt", event="after_iter", at=at)], ema=ema, **often)
        with pytest.raises(Ended):
            train_classifier(cut)
        cut.custom_hooks = cut.custom_hooks[:-1]
        train_classifier(cut, resume=True)
        assert_equal(saved(whole)["state_dict"], saved(cut)["state_dict"])

"""Runs in which the quantizers' parameters have an optimizer and a learning rate policy of their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
from test_resume import QUANT, content, end, records, same_run

from lbitcls.apis import train_classifier
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.workflows.checking import check_config

OWN = dict(
    quantizers=dict(
        optimizer=dict(type="Adam", lr=1e-3), lr_config=dict(policy="OneCycle", pct_start=0.5, anneal_strategy="linear")
    ),
    decay_by_bits={4: 3e-5},
)


def sections(paramwise: dict[str, Any] = OWN) -> dict[str, Any]:
    optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4, paramwise_cfg=paramwise)
    return {**QUANT, "optimizer": optimizer, "checkpoint_config": dict(interval=7, by_epoch=False)}


def test_resumed_run_is_bit_identical(make_config: Any) -> None:
    whole, ended = make_config("whole", **sections()), make_config("ended", **sections())
    train_classifier(whole)
    end(ended, "after_iter", 17)
    train_classifier(ended, resume=True)
    same_run(whole, ended)
    saved = content(whole.work_dir)
    assert saved["meta"]["optimizer"] == "SGD with Adam for quantizers"
    main, own = saved["optimizer"]["main"]["param_groups"], saved["optimizer"]["quantizers"]["param_groups"]
    assert {"exp_avg", "exp_avg_sq"} <= set(saved["optimizer"]["quantizers"]["state"][0])
    assert sorted(group["weight_decay"] for group in main) == [3e-5, 1e-4]  # of two Conv2d; of everything else
    # The last of 24 iterations: torch's final rate of the quantizers, half a cosine of 24 steps for the others.
    assert own[0]["lr"] == pytest.approx(1e-3 / 25 / 1e4)
    assert main[0]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * 23 / 24)))
    assert records(whole.work_dir)[0]["lr"] > 1e-3  # the log's rate is that of the weights


def test_a_run_with_other_optimizers_is_refused(make_config: Any) -> None:
    cfg = make_config(**sections())
    end(cfg, "after_iter", 8)
    other = make_config("other", resume_from=f"{cfg.work_dir}/latest.pth", **sections({}))
    with pytest.raises(CheckpointError, match="trained with SGD with Adam for quantizers; the config sets SGD"):
        train_classifier(other)


def test_a_check_finds_wrong_settings_and_accepts_right_ones(make_config: Any) -> None:
    assert dict(check_config(make_config(**sections())))["optimizer"].startswith("SGD, lr 0.1")
    float_run = sections()
    del float_run["quant_transformer"], float_run["calibration"]
    with pytest.raises(ConfigError, match="no quantizer of this model learns a parameter; leave it out"):
        check_config(make_config(**float_run))

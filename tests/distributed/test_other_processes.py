"""A run that one number of processes began, another one resumes: with the same global batch, as one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ranks import play  # type: ignore[import-not-found]
from scenes import resume, train  # type: ignore[import-not-found]

STOP = 8  # iterations until a signal's effect, which is sent after one less


def interrupted(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config of a run that a signal ends after `STOP` iterations."""
    return {**cfg, "custom_hooks": [dict(type="EndAt", event="after_iter", at=STOP - 1, how="SIGTERM")]}


def check_as_uninterrupted(parts: Sequence[dict[str, Any]], whole: dict[str, Any]) -> None:
    losses = [loss for part in parts for loss in part["losses"]]
    assert np.allclose(losses, whole["losses"], rtol=1e-5) and len(losses) == len(whole["losses"])
    assert np.allclose([rate for part in parts for rate in part["rates"]], whole["rates"])
    assert [number for part in parts for number in part["images"]] == whole["images"]
    assert all(
        torch.allclose(parts[-1]["states"][-1][name], value, rtol=1e-4, atol=1e-6)
        for name, value in whole["states"][-1].items()
    )


def test_the_same_batch_on_other_processes(make_run: Any) -> None:
    """One process, then two, interrupted as well, then one: in two epochs, the second entered in its middle."""
    (whole,) = play(train, 1, {**make_run("whole", 1), "total_epochs": 2})
    common = {"work_dir": make_run("run", 1)["work_dir"], "total_epochs": 2}
    (first,) = play(train, 1, interrupted({**make_run("run", 1), **common}))
    two = {**make_run("run", 2), **common}
    two["custom_hooks"] = [dict(type="EndAt", event="after_iter", at=30, how="SIGTERM")]
    second, other = play(resume, 2, two)
    (third,) = play(resume, 1, {**make_run("run", 1), **common})
    assert [len(part["losses"]) for part in (first, second, third)] == [8, 24, 14]  # ranks agree an iteration later
    check_as_uninterrupted((first, second, third), whole)
    for mine, theirs in zip(second["states"], other["states"], strict=True):  # after resuming, and after the epoch
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_the_same_batch_from_four_processes_to_two_with_accumulation(make_run: Any) -> None:
    common = {"work_dir": make_run("run", 1)["work_dir"], "lr_config": None}  # iterations count: 23 or 45 an epoch
    (whole,) = play(train, 1, {**make_run("whole", 1), "lr_config": None})
    first, *_ = play(train, 4, interrupted({**make_run("run", 4), **common}))
    accumulated = make_run("run", 2, size=16, optimizer_config=dict(cumulative_iters=2))
    second, _ = play(resume, 2, {**accumulated, **common})
    final = second["states"][-1]
    assert all(torch.allclose(final[n], v, rtol=1e-4, atol=1e-6) for n, v in whole["states"][-1].items())
    assert len(first["losses"]) + (len(second["losses"]) + 1) // 2 == len(whole["losses"])


def test_another_batch_trains_on_each_image_once(make_run: Any) -> None:
    """512 of 1,437 images, then 925 in batches of 96: 10 of the new epoch's 15 iterations."""
    cfg = make_run("run", 1)
    play(train, 1, interrupted(cfg))
    first, second = play(resume, 2, {**make_run("run", 2, size=48), "work_dir": cfg["work_dir"]})
    assert "An epoch had 23 iterations when this run was saved and has 15 now" in first["told"]
    assert "after 512 of its 1437 images, at iteration 5" in first["told"]
    assert first["images"] == [*range(512 + 96, 1437, 96), 1437]
    seen = sorted(index for rank in (first, second) for index in rank["seen"])
    assert len(seen) == len(set(seen)) == 925
    expected = [0.05 * 0.5 * (1 + np.cos(np.pi * number / 15)) for number in range(5, 15)]
    assert np.allclose(first["rates"], expected)


def test_an_older_checkpoint_resumes(make_run: Any) -> None:
    """It counts iterations alone: with other epochs, the epoch starts again, as it did before."""
    cfg = make_run("run", 1)
    play(train, 1, interrupted(cfg))
    path = f"{cfg['work_dir']}/latest.pth"
    content = torch.load(path, weights_only=True)
    del content["meta"]["samples"], content["meta"]["data_len"]
    torch.save(content, path)
    (same,) = play(resume, 1, {**cfg, "total_epochs": 1})
    assert len(same["losses"]) == 23 - STOP
    torch.save(content, path)
    (other,) = play(resume, 1, {**make_run("run", 1, size=128), "work_dir": cfg["work_dir"]})
    assert len(other["losses"]) == 12 and "resuming from the beginning of epoch 1" in other["told"]

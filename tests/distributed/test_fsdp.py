"""Distributed parameters (`parallel=dict(kind='fsdp')`): runs as with DDP, and checkpoints for other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import play  # type: ignore[import-not-found]
from scenes import resume, train, train_all  # type: ignore[import-not-found]
from test_other_processes import check_as_uninterrupted, interrupted  # type: ignore[import-not-found]
from test_same_batch import apart, losses_apart  # type: ignore[import-not-found]

from lbitcls.apis import init_model
from lbitcls.utils.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

SHARDED = dict(kind="fsdp", wrap=["Conv2d"])
STEEP = dict(optimizer=dict(type="SGD", lr=0.3, momentum=0.9))


def quantized(method: str, **options: Any) -> dict[str, Any]:
    """Sections that quantize all layers to 4 bits."""
    entries = {kind: dict(type=f"{method}{suffix}", num_bit_w=4, num_bit_a=4, **options) for kind, suffix in KINDS}
    policy = dict(type="mTransformerV2", quan_policy=entries)
    return dict(quant_transformer=policy, calibration=dict(epoch=0, num_batches=2), kernels="plain")


KINDS = (("Conv2d", "Conv"), ("Linear", "Linear"))


def test_it_trains_as_ddp_does(make_run: Any) -> None:
    """With half of the bytes in each process; 0.1 bounds the norm of the whole gradient, of which each has a part."""

    def runs(kind: str, parallel: Any) -> dict[str, Any]:
        given = {
            "averaged": dict(backbone="TinyNet", sycbn=True, ema=dict(decay=0.9, bn_batches=3)),
            "clipped": dict(size=16, optimizer_config=dict(cumulative_iters=3, grad_clip=dict(max_norm=0.1))),
            "observed": dict(backbone="TinyNet", amp=True, not_finite="skip", **quantized("TorchQAT")),
        }
        given["clipped"] |= quantized("LSQ", per_channel=True)
        return {
            f"{name}_{kind}": {**make_run(f"{name}_{kind}", 2, parallel=parallel, **sections), **STEEP}
            for name, sections in given.items()
        }

    first, second = play(train_all, 2, {**runs("ddp", "ddp"), **runs("fsdp", SHARDED)})
    for name in ("averaged", "clipped", "observed"):
        whole, parts = first[f"{name}_ddp"], first[f"{name}_fsdp"]
        print(name, losses_apart(parts, whole), apart(parts, whole), whole["held"], parts["held"], parts["losses"][-1])
        assert losses_apart(parts, whole) < 1e-6 and apart(parts, whole) < 1e-5, name
        assert parts["summary"].keys() == whole["summary"].keys(), name
        assert max(parts["held"], second[f"{name}_fsdp"]["held"]) < 0.53 * whole["held"], name
        if name != "observed":  # its ranges are the first process's at the next forward pass
            for mine, other in zip(parts["states"], second[f"{name}_fsdp"]["states"], strict=True):
                assert [key for key in mine if not torch.equal(mine[key], other[key])] == []
    state = read_checkpoint(f"{make_run('averaged_fsdp', 2)['work_dir']}/latest.pth")["state_dict"]
    assert all(torch.equal(value, first["averaged_fsdp"]["states"][-1][f"ema.{name}"]) for name, value in state.items())
    (alone,) = play(
        train_all, 1, {"clipped": {**make_run("alone", 1, size=32, **quantized("LSQ", per_channel=True)), **STEEP}}
    )
    before, parts = alone["clipped"]["states"][0], first["clipped_fsdp"]["states"][0]
    scales = [name for name in before if name.endswith("quantizer.scale")]
    assert len(scales) == 6 and all(torch.allclose(parts[name], before[name], rtol=1e-6) for name in scales)


def test_all_processes_stop_if_a_loss_is_not_finite(make_run: Any) -> None:
    hooks = [dict(type="Poison", at=3)]
    cfg = make_run("run", 2, parallel="fsdp", custom_hooks=hooks, optimizer_config=dict(grad_clip=dict(max_norm=1.0)))
    with pytest.raises(AssertionError) as failed:
        play(train, 2, cfg)
    assert str(failed.value).count("TrainingError: the loss is not finite in epoch 1, iteration 4") == 2


def test_a_run_of_two_processes_resumes_on_four_and_ends_on_one(make_run: Any) -> None:
    def run(ranks: int, **sections: Any) -> dict[str, Any]:
        cfg = {**make_run("run", ranks, parallel=SHARDED, **quantized("LSQ")), **STEEP, **sections}
        return {**cfg, "checkpoint_config": dict(interval=4, by_epoch=False, max_keep_ckpts=1)}

    folder = Path(make_run("run", 2)["work_dir"])
    (whole,) = play(train, 1, {**run(1), "work_dir": f"{folder}_whole"})
    first, _ = play(train, 2, interrupted({**run(2), "work_dir": str(folder)}))
    saved = {path.name: {part.name for part in path.iterdir()} for path in folder.glob("*.sharded")}
    pieces = {"__0_0.distcp", "__1_0.distcp", ".metadata", "plain.pth"}
    assert saved == {"iter_8.sharded": pieces, "interrupted.sharded": pieces}
    assert not list(folder.glob("*.pth")) and not list(folder.glob(".lbitcls*"))
    stop = [dict(type="EndAt", event="after_iter", at=14, how="SIGTERM")]
    second, *_ = play(resume, 4, {**run(4), "work_dir": str(folder), "custom_hooks": stop})
    assert init_model(str(folder / "config.py"), str(folder / "interrupted.sharded"), device="cpu") is not None
    (third,) = play(resume, 1, {**run(1), "work_dir": str(folder)})
    assert [len(part["losses"]) for part in (first, second, third)] == [
        9,
        7,
        7,
    ]  # several ranks agree to stop an iteration later
    check_as_uninterrupted((first, second, third), whole)
    assert {path.name for path in folder.glob("i*")} == {"iter_23.pth"}

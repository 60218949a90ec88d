"""The same global batch on 1, 2 and 4 processes: the same losses and weights, up to the order of summation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import play  # type: ignore[import-not-found]
from scenes import train_all  # type: ignore[import-not-found]

from lbitcls.quant.kernels import machine

QUANT = dict(
    quant_transformer=dict(
        type="mTransformerV2", quan_policy=dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    )
)
Runs = dict[str, dict[str, Any]]


def apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest difference between two runs' states at the end, relative to each tensor's largest value."""
    pairs = [(a["states"][-1][name], value) for name, value in b["states"][-1].items() if value.is_floating_point()]
    return max(((mine - other).abs().max() / other.abs().max().clamp(min=1e-3)).item() for mine, other in pairs)


def losses_apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest relative difference between two runs' losses, iteration by iteration."""
    assert len(a["losses"]) == len(b["losses"])
    return float(np.max(np.abs(np.divide(a["losses"], b["losses"]) - 1)))


def play_runs(runs: Callable[[int], Runs], ranks: int) -> Runs:
    """What rank 0 saw of each run; the others must have the same state at each moment, bit by bit."""
    first, *others = play(train_all, ranks, runs(ranks))
    for other in others:
        for name, run in first.items():
            for mine, theirs in zip(run["states"], other[name]["states"], strict=True):
                different = [key for key in mine if not torch.equal(mine[key], theirs[key])]
                assert different == [], name
    return first


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 pictures of each of two classes; five files are no pictures."""
    for number in range(40):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 128 + 127 * (number % 2), (8, 8, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        if number % 8 == 3:
            path.write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_does_not_depend_on_the_number_of_processes(make_run: Any, photos: Path, ranks: int) -> None:
    """Also the epoch's last batch, of 29 images; with unreadable images, whose number differs from rank to rank."""
    folder = dict(
        type="ImageFolder", data_prefix=str(photos), pipeline=[dict(type="Normalize", mean=[128.0] * 3, std=[64.0] * 3)]
    )

    def runs(ranks: int) -> Runs:
        teacher = make_run("plain", 1)["work_dir"]
        skipped = make_run("skipped", ranks, size=8 // ranks, optimizer_config=dict(cumulative_iters=2))
        skipped["model"]["backbone"]["in_channels"] = 3
        skipped["data"] |= dict(train=dict(folder, on_error="skip"), val=dict(folder, on_error="skip"))
        return {
            "plain": make_run("plain", ranks),
            "synced": make_run("synced", ranks, backbone="TinyNet", sycbn=True, ema=dict(decay=0.9)),
            "skipped": skipped,
            "halves": make_run("halves", ranks, amp=True, optimizer_config=dict(cumulative_iters=3)),
            "distilled": make_run("student", ranks, distill=dict(teacher=dict(checkpoint=f"{teacher}/latest.pth"))),
        }

    alone = play_runs(runs, 1)
    together = play_runs(runs, ranks)
    for name, expected in alone.items():
        rounding = 0.02 if name == "halves" else 1e-5  # bfloat16 has 8 bits
        assert losses_apart(together[name], expected) < rounding, name
        assert apart(together[name], expected) < rounding, name
        assert together[name]["images"][-1] == expected["images"][-1] or name == "skipped", name
        assert together[name]["summary"]["float"]["top1"] == expected["summary"]["float"]["top1"] or name == "halves"


@pytest.mark.parametrize("kind", ["plain", pytest.param("integer", marks=pytest.mark.slow)])
def test_quantized_runs_differ_as_two_orders_of_summation_do(make_run: Any, kind: str) -> None:
    """A value next to a tie may round the other way; sums in another order, in one process, do the same."""
    if kind == "integer" and machine.find_obstacle():
        pytest.skip("this machine multiplies no 8-bit integers")
    calibration = dict(epoch=0, num_batches=2)
    start = make_run("start", 1, calibration=calibration, **QUANT)
    play(train_all, 1, {"start": start})
    given = dict(QUANT, kernels=dict(kind=kind), load_from=f"{start['work_dir']}/latest.pth")

    def whole(ranks: int, **options: Any) -> dict[str, Any]:
        return dict(make_run("whole", ranks, **given, **options), lr_config=None)

    parts = whole(1, size=32, optimizer_config=dict(cumulative_iters=2))
    alone = play_runs(lambda ranks: {"whole": whole(ranks), "parts": parts}, 1)
    own = make_run("own", 2, calibration=calibration, **QUANT)
    together = play_runs(lambda ranks: {"whole": whole(ranks), "calibrated": own}, 2)
    assert together["whole"]["losses"][0] == pytest.approx(alone["whole"]["losses"][0], rel=1e-6)
    assert apart(together["whole"], alone["whole"]) < 10 * apart(alone["parts"], alone["whole"]) < 0.01

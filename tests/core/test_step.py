"""Accumulation, clipping, precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.core.step import OptimizerStep, Precision, read_precision
from lbitcls.settings.sections import read_settings
from lbitcls.utils.errors import ConfigError

CPU = torch.device("cpu")


class Net(nn.Module):
    """What the step needs of a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 3).double()
        self.seen: torch.dtype | None = None

    def forward(self, img: Tensor, gt_label: Tensor, return_loss: bool) -> dict[str, Tensor]:
        logits = self.fc(img)
        self.seen = logits.dtype
        return {"loss": nn.functional.cross_entropy(logits, gt_label)}


def batches(sizes: list[int]) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [dict(img=torch.randn(n, 6).double(), gt_label=torch.randint(3, (n,))) for n in sizes]


def train(groups: list[dict[str, Tensor]], **options: Any) -> Net:
    model = Net()
    step = OptimizerStep(torch.optim.SGD(model.parameters(), 0.5, 0.9), CPU, **options)
    for i, batch in enumerate(groups):
        step(model, batch, i, len(groups))
    return model


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4], [4, 4, 4, 4, 4], [4, 4, 4, 4, 4, 3], [4, 4, 2], [5]])
def test_accumulation_equals_one_big_batch(sizes: list[int]) -> None:
    """Also in a last group with fewer batches, or with a smaller one."""
    small = batches(sizes)
    big = [joined(small[i : i + 2]) for i in range(0, len(small), 2)]
    accumulated, whole = train(small, cumulative_iters=2), train(big)
    torch.testing.assert_close(accumulated.fc.weight, whole.fc.weight, rtol=1e-12, atol=1e-12)


def test_processes_that_leave_out_different_images_stay_equal(run_ranks: Callable[[Path], None]) -> None:
    run_ranks(Path(__file__).with_name("step_worker.py"))


def test_clipping() -> None:
    clip = dict(max_norm=0.01, norm_type=2)
    model = Net()
    before = model.fc.weight.clone(), model.fc.bias.clone()
    step = OptimizerStep(torch.optim.SGD(model.parameters(), 1.0), CPU, grad_clip=clip)
    outputs = step(model, batches([8])[0], 0, 1)
    moved = torch.cat([(model.fc.weight - before[0]).flatten(), model.fc.bias - before[1]])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert outputs["grad_norm"] > 0.01


def test_penalty_is_added_and_reported() -> None:
    model = Net()
    step = OptimizerStep(torch.optim.SGD(model.parameters(), 0.0), CPU, penalty=lambda: model.fc.weight.square().sum())
    outputs = step(model, batches([8])[0], 0, 1)
    plain = nn.functional.cross_entropy(model.fc(batches([8])[0]["img"]), batches([8])[0]["gt_label"])
    assert outputs["loss"] == pytest.approx((plain + outputs["loss_quant"]).item())
    assert not outputs["loss"].requires_grad


def test_autocast() -> None:
    model = Net().float()
    step = OptimizerStep(torch.optim.SGD(model.parameters(), 0.1), CPU, precision=Precision(torch.bfloat16))
    batch = batches([4])[0]
    step(model, dict(img=batch["img"].float(), gt_label=batch["gt_label"]), 0, 1)
    assert model.seen is torch.bfloat16
    assert model.fc.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("amp", "fp16", "dtype"),
    [
        (None, None, None),
        (False, None, None),
        (True, None, torch.bfloat16),
        ("fp16", None, torch.float16),
        (dict(dtype="bfloat16"), None, torch.bfloat16),
        (None, dict(loss_scale=512.0), torch.float16),
        (None, dict(), torch.float16),
    ],
)
def test_precision_from_the_config(amp: Any, fp16: Any, dtype: torch.dtype | None) -> None:
    settings = read_settings(dict(amp=amp, fp16=fp16))
    assert read_precision(settings.amp, settings.fp16).dtype is dtype


@pytest.mark.parametrize(
    ("amp", "fp16", "message"),
    [
        (True, True, "one of them"),
        ("bf32", None, "one of 'bf16', "),
        (dict(type="bf16"), None, "does not accept 'type'"),
        (None, dict(loss_scale="high"), "loss_scale"),
    ],
)
def test_wrong_precision(amp: Any, fp16: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings = read_settings(dict(amp=amp, fp16=fp16))
        read_precision(settings.amp, settings.fp16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(cumulative_iters=0), "≥ 1"),
        (dict(grad_clip=dict(norm=1)), "does not accept 'norm'"),
        (dict(grad_clip=dict(norm_type=2)), "needs 'max_norm'"),
    ],
)
def test_mistakes(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerStep(torch.optim.SGD(Net().parameters(), 0.1), CPU, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(grad_clip=5), r"grad_clip must be a dict\(…\); got 5"),
        (dict(grad_clip=dict(max_norm="high")), "max_norm must be a number > 0; got the string 'high'"),
        (dict(grad_clip=dict(max_norm=None)), "max_norm must be a number > 0; got None"),
    ],
)
def test_mistakes_in_clipping(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerStep(torch.optim.SGD(Net().parameters(), 0.1), CPU, **options)


@pytest.mark.parametrize("amp", [5, ["bf16"], dict(dtype=5), dict(dtype=["bf16"])])
def test_precision_of_a_wrong_kind(amp: Any) -> None:
    with pytest.raises(ConfigError, match="amp"):
        read_settings(dict(amp=amp))


def test_optimizer_that_refuses_its_first_step() -> None:
    model = Net()
    step = OptimizerStep(torch.optim.SparseAdam(list(model.parameters())), CPU)
    with pytest.raises(ConfigError, match="SparseAdam cannot train this: SparseAdam does not support dense gradients"):
        step(model, batches([4])[0], 0, 1)


def test_batch_too_small_for_its_norms() -> None:
    class Normed(Net):
        def forward(self, img: Tensor, gt_label: Tensor, return_loss: bool) -> dict[str, Tensor]:
            return super().forward(nn.functional.batch_norm(img, None, None, training=True), gt_label, return_loss)

    model = Normed()
    step = OptimizerStep(torch.optim.SGD(model.parameters(), 0.1), CPU)
    step(model, batches([2])[0], 0, 2)
    with pytest.raises(ConfigError, match=r"a batch of 1 .* data\.drop_last=True"):
        step(model, batches([1])[0], 1, 2)


def test_a_resumed_optimizer_keeps_the_configs_settings_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    before = OptimizerStep(torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1e-4), torch.device("cpu"))
    weight.grad = torch.ones(2)
    before.optimizer.step()
    after = OptimizerStep(torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.0), torch.device("cpu"))
    after.load_state_dict({"optimizer": before.optimizer.state_dict()})
    assert after.optimizer.param_groups[0]["weight_decay"] == 0.0
    assert "momentum_buffer" in after.optimizer.state[weight]
    assert "weight_decay 0.0001 -> 0.0" in caplog.text

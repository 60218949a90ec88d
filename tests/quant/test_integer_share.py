"""Share of a model's multiplications that integers carry in a training step, in every family of backbones."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lbitcls.models import build_backbone
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.bypass import quantized_layers
from lbitcls.quant.cost import count_macs
from lbitcls.quant.integer_layers import why_float
from lbitcls.quant.integer_report import integer_summary
from lbitcls.quant.kernels import integer_operators, machine, selection
from lbitcls.quant.layers import ENTRY_SUFFIXES
from lbitcls.registry import BACKBONES
from lbitcls.utils.config import Config
from lbitcls.workflows.planning import show_plan

pytestmark = pytest.mark.skipif(bool(machine.find_obstacle()), reason="this machine multiplies no 8-bit integers")

POLICY = {kind: dict(type=f"LSQ{suffix}", num_bit_w=4, num_bit_a=4) for kind, suffix in ENTRY_SUFFIXES.items()}

# config of the backbone, and shape of its image
FAST: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "ResNet": (dict(type="ResNet", depth=18), (3, 64, 64)),
    "ResNet_CIFAR": (dict(type="ResNet_CIFAR", depth=18, base_channels=16), (3, 32, 32)),
    "ResNetCIFAROptionA": (dict(type="ResNetCIFAROptionA", depth=20), (3, 32, 32)),
    "ResNetCIFAROptionB": (dict(type="ResNetCIFAROptionB", depth=20), (3, 32, 32)),
    "MobileNetV2": (dict(type="MobileNetV2"), (3, 64, 64)),
    "VGGSmall": (dict(type="VGGSmall"), (3, 32, 32)),
    "LeNet5": (dict(type="LeNet5", num_classes=10), (1, 28, 28)),
    "SqueezeNet": (dict(type="SqueezeNet"), (3, 64, 64)),
    "VGG": (dict(type="VGG", depth=11), (3, 32, 32)),
    "torchvision shufflenet": (dict(type="TorchvisionBackbone", name="shufflenet_v2_x1_0"), (3, 64, 64)),
    "torchvision mobilenet_v3": (dict(type="TorchvisionBackbone", name="mobilenet_v3_small"), (3, 64, 64)),
    "timm resnet": (dict(type="TimmBackbone", name="resnet10t"), (3, 64, 64)),
}
SLOW = {
    "torchvision efficientnet": (dict(type="TorchvisionBackbone", name="efficientnet_b0"), (3, 64, 64)),
    "torchvision densenet": (dict(type="TorchvisionBackbone", name="densenet121"), (3, 64, 64)),
    "torchvision regnet": (dict(type="TorchvisionBackbone", name="regnet_y_400mf"), (3, 64, 64)),
    "torchvision convnext": (dict(type="TorchvisionBackbone", name="convnext_tiny"), (3, 64, 64)),
    "torchvision vit": (dict(type="TorchvisionBackbone", name="vit_b_32"), (3, 224, 224)),
    "torchvision swin": (dict(type="TorchvisionBackbone", name="swin_t"), (3, 224, 224)),
    "timm mobilenetv3": (dict(type="TimmBackbone", name="mobilenetv3_small_050"), (3, 64, 64)),
    "timm vit": (dict(type="TimmBackbone", name="vit_tiny_patch16_224"), (3, 224, 224)),
}
ATTENTION = {"torchvision vit": 64, "torchvision swin": 66, "timm vit": 83}
"""Families below 90 %, with their share in percent, as docs/design.md explains it."""
FROZEN = {"TorchvisionQuantizedBackbone", "IntegerBackbone"}
"""Backbones of integers that no training changes."""


def share_of(config: dict[str, Any], shape: tuple[int, int, int], patch: pytest.MonkeyPatch) -> float:
    """Share of the multiplications of a forward pass in training that integers carry."""
    model, images = build_backbone(config), torch.randn(2, *shape)
    with FlopCounterMode(display=False) as counter:
        model.train()(images)  # in eval, attention runs as one operator, which is not counted
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=POLICY))(model)
    calibrate(model.train(), [images])
    patch.setattr(selection, "_active", "integer")
    patch.setattr(selection, "fused_now", lambda: False)
    carried = []

    def counting(operator: Any) -> Any:
        def counted(codes: Tensor, weight: Tensor, *rest: Any) -> Tensor:
            y = operator(codes, weight, *rest)
            carried.append(y.numel() * weight[0].numel())
            return y

        return counted

    for name in ("convolve", "multiply_matrices"):
        patch.setattr(integer_operators, name, counting(getattr(integer_operators, name)))
    model(images)
    return 2 * sum(carried) / counter.get_total_flops()


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_integers_carry_the_multiplications(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    share = share_of(*{**FAST, **SLOW}[name], monkeypatch)
    if name in ATTENTION:
        assert round(100 * share) == ATTENTION[name]
    else:
        assert share >= 0.9


def test_every_registered_backbone_is_measured() -> None:
    own = {name for name in BACKBONES.names() if BACKBONES.find(name).__module__.startswith("lbitcls.")}
    assert own - FROZEN == {config["type"] for config, _ in (FAST | SLOW).values()}


def test_the_page_names_the_exceptions(repo_root: Path) -> None:
    page = (repo_root / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (torchvision|timm) `([a-z]+)_\w+` \| (\d+) %", page, re.MULTILINE)
    assert {f"{library} {name}": int(share) for library, name, share in rows} == ATTENTION


class Mixed(nn.Module):
    """Layers that integers serve, and one of each reason known before the quantizers have scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding="same")
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.up, self.weights = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.weights(self.up(self.mirrored(self.second(self.first(x).relu()))))
        return self.head(x.mean((2, 3)))


def mixed_transformer() -> Any:
    special = dict(layers_name=["weights"], convert_type=[dict(type="LSQConv", num_bit_w=4, num_bit_a=32)])
    policy = {kind: entry for kind, entry in POLICY.items() if kind != "Conv1d"}
    cfg = dict(type="ModelTransformer", quan_policy=policy, special_layers=special, exclude_layers=["first"])
    return build_mtransformer(cfg)


def test_the_summary_groups_layers_by_reason_and_counts_their_share() -> None:
    model, transformer = Mixed(), mixed_transformer()
    macs = count_macs(model, torch.zeros(1, 3, 8, 8))
    lines = integer_summary(transformer.plan(model), model, macs)
    assert [re.sub(r"\d+\.\d %", "N %", line) for line in lines] == [
        "multiplies integers in training: 2 of 6 layers (N % of the multiplications)",
        "multiplies floats in training: 1 of 6 layers (N % of the multiplications): not quantized; first",
        "multiplies floats in training: 1 of 6 layers (N % of the multiplications): padding_mode='reflect'; mirrored",
        "multiplies floats in training: 1 of 6 layers (N % of the multiplications): no integer kernel for a "
        "ConvTranspose2d; up",
        "multiplies floats in training: 1 of 6 layers (N % of the multiplications): weight or input is float; weights",
    ]
    shares = [float(re.search(r"\((\S+) %", line)[1]) for line in lines]  # type: ignore[index]
    assert abs(sum(shares) - 100) < 0.3
    assert shares[0] == round(100 * (macs["second"] + macs["head"]) / sum(macs.values()), 1)


def test_the_summary_is_what_training_does() -> None:
    """Every layer that the summary promises to integers multiplies them after calibration, and no other."""
    model, transformer = Mixed(), mixed_transformer()
    expected = {"second", "head"}
    model = transformer(model)
    calibrate(model.train(), [torch.randn(2, 3, 8, 8)])
    layers = quantized_layers(model)
    assert {name for name, layer in layers.items() if why_float(layer) is None} == expected


@pytest.mark.parametrize("kind", ["integer", "fused"])
def test_the_plan_in_the_log_ends_with_the_summary(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selection, "_active", kind)
    with caplog.at_level(logging.DEBUG, "lbitcls"):
        mixed_transformer()(Mixed())
    last = [line for line in caplog.text.splitlines() if line.startswith("multiplies floats")]
    assert bool(last) == (kind == "integer")
    assert not last or last[0] == "multiplies floats in training: 1 of 6 layers: not quantized; first"


@pytest.mark.parametrize("kernels", ["auto", "integer", "plain"])
@pytest.mark.parametrize("able", [True, False])
def test_the_plan_command_says_what_integers_carry(
    kernels: str, able: bool, repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = Config.fromfile(repo_root / "configs" / "quickstart" / "digits_lsq_4w4f.py")
    cfg.kernels = kernels
    if not able:
        monkeypatch.setattr(machine, "find_obstacle", lambda: "no VNNI")
    show_plan(cfg)
    shown = capsys.readouterr().out
    carried = re.search(r"multiplies integers in training: (\d+) of (\d+) layers \(\S+ % of", shown)
    assert bool(carried) == (able and kernels != "plain")
    assert ("no integer kernels on this machine: no VNNI" in shown) == (not able and kernels != "plain")

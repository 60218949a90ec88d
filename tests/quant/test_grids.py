"""Only a quantizer with the same grid keeps another quantizer's values, whatever their source."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.calibration import named_quantizers, uninitialized
from lbitcls.utils import load_checkpoint, save_checkpoint
from lbitcls.utils.errors import CheckpointError

IMAGES = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(3))
GRIDS: dict[str, dict[str, Any]] = {
    "LSQ 8": dict(method="LSQ", bits=8),
    "LSQ 4": dict(method="LSQ", bits=4),
    "LSQ 3": dict(method="LSQ", bits=3),
    "LSQ 4 per channel": dict(method="LSQ", bits=4, per_channel=True),
    "LSQ 4 folded": dict(method="LSQ", bits=4, fold_bn=True),
    "EWGS 4": dict(method="EWGS", bits=4),
    "UQ 4": dict(method="UQ", bits=4),
    "APoT 4": dict(method="APoT", bits=4),
    "DSQ 4": dict(method="DSQ", bits=4),
    "TorchQAT 8": dict(method="TorchQAT", bits=8),
    "TorchQAT 8 reduced": dict(method="TorchQAT", bits=8, reduce_range=True),
    "LSQPlus 4": dict(method="LSQPlus", bits=4),
    "N2UQ 4": dict(method="N2UQ", bits=4),
    "PACT 4": dict(method="PACT", bits=4),
}


def quantized(method: str, bits: int, fold_bn: bool = False, data: bool = True, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    entry = dict(num_bit_w=bits, num_bit_a=bits, **options)
    policy = {kind: dict(type=f"{method}{end}", **entry) for kind, end in (("Conv2d", "Conv"), ("Linear", "Linear"))}
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, fold_bn=fold_bn))(net).eval()
    if data:
        calibrate(model, [IMAGES])
    return model


@cache
def calibrated_output(name: str) -> torch.Tensor:
    return quantized(**GRIDS[name])(IMAGES).detach()


@pytest.mark.parametrize("there", GRIDS)
def test_other_grids_are_taken_anew_and_equal_ones_kept(there: str, tmp_path: Path, caplog: Any) -> None:
    """A loaded and calibrated model equals one that received only the weights; of the same kind, the saved one.

    Each grid is calibrated after each other of its method, and after at least three in all.
    """
    source = quantized(**GRIDS[there])
    save_checkpoint(source, tmp_path / "x.pth")
    for here, options in GRIDS.items():
        caplog.clear()
        model = quantized(**options, data=False)
        load_checkpoint(model, tmp_path / "x.pth")
        if here == there:
            assert not uninitialized(model) and "initialized again" not in caplog.text
            assert torch.equal(model(IMAGES), source(IMAGES))
            continue
        assert "there; " in caplog.text or "lacks" in caplog.text
        with pytest.raises(CheckpointError, match="in another way"):
            load_checkpoint(model, tmp_path / "x.pth", strict=True)
        apart = (list(GRIDS).index(here) - list(GRIDS).index(there)) % len(GRIDS)
        if apart in (1, 4, 6) or options["method"] == GRIDS[there]["method"]:
            calibrate(model, [IMAGES])
            torch.testing.assert_close(model(IMAGES), calibrated_output(here), msg=here)


def test_a_fixed_sign_decides(tmp_path: Path, caplog: Any) -> None:
    source = quantized("LSQ", 4)
    assert [q.signed for name, q in named_quantizers(source) if "input" in name] == [True, False]
    save_checkpoint(source, tmp_path / "x.pth")
    model = quantized("LSQ", 4, data=False, signed=True)
    load_checkpoint(model, tmp_path / "x.pth")
    assert uninitialized(model) == ["4.input_quantizer"] and "unsigned there, signed here" in caplog.text


@pytest.mark.parametrize("lost", ["scale", "initialized", "negative", "enabled"])
def test_a_tensor_that_is_lost_is_named(lost: str, tmp_path: Path, caplog: Any) -> None:
    source = quantized("LSQ", 4)
    state = source.state_dict()
    del state[f"4.weight_quantizer.{lost}"]
    torch.save(state, tmp_path / "x.pth")
    model = quantized("LSQ", 4)
    load_checkpoint(model, tmp_path / "x.pth")
    assert f"initialized again (it lacks {lost}): 4.weight_quantizer" in caplog.text
    assert uninitialized(model) == ["4.weight_quantizer"]
    with pytest.raises(CheckpointError, match=rf"it lacks {lost}\): 4\.weight_quantizer"):
        load_checkpoint(quantized("LSQ", 4), tmp_path / "x.pth", strict=True)
    bare = quantized("LSQ", 4)
    assert bare.load_state_dict(state, strict=False).missing_keys == [f"4.weight_quantizer.{lost}"]
    assert uninitialized(bare) == ["4.weight_quantizer"]


def test_a_quantizer_that_is_lost_is_named(tmp_path: Path, caplog: Any) -> None:
    state = {name: value for name, value in quantized("LSQ", 4).state_dict().items() if "0.weight_q" not in name}
    torch.save(state, tmp_path / "x.pth")
    load_checkpoint(quantized("LSQ", 4), tmp_path / "x.pth")
    assert "from a quantized model but lacks 4 quantizer tensors: 0.weight_quantizer" in caplog.text
    with pytest.raises(CheckpointError, match="lacks 4 quantizer tensors") as error:
        load_checkpoint(quantized("LSQ", 4), tmp_path / "x.pth", strict=True)
    assert "float weights" not in str(error.value)


def test_a_plain_state_dict_is_refused_by_another_grid() -> None:
    with pytest.raises(RuntimeError, match="0.weight_quantizer is for another grid: LSQ, 8 bits.* there; LSQ, 4 bits"):
        quantized("LSQ", 4).load_state_dict(quantized("LSQ", 8).state_dict())


@pytest.mark.parametrize("there", ["LSQ", "PACT", "TorchQAT", "EWGS"])
def test_another_method_is_named_whatever_its_tensors(there: str, tmp_path: Path, caplog: Any) -> None:
    source = quantized(there, 4)
    save_checkpoint(source, tmp_path / "x.pth")
    load_checkpoint(quantized("APoT", 4), tmp_path / "x.pth")
    theirs = type(dict(named_quantizers(source))["4.input_quantizer"]).__name__
    assert f"{theirs}, 4 bits" in caplog.text and "APoT, 4 bits" in caplog.text and "lacks" not in caplog.text
    with pytest.raises(RuntimeError, match=f"{theirs}, 4 bits.* there; APoT, 4 bits.* here"):
        quantized("APoT", 4).load_state_dict(source.state_dict(), strict=False)


def test_files_of_before_say_no_grid(tmp_path: Path, caplog: Any) -> None:
    """They load as before; a message says that nothing describes the values."""
    source = quantized("LSQ", 4)
    state = {name: value for name, value in source.state_dict().items() if not name.endswith(".grid")}
    torch.save(state, tmp_path / "x.pth")
    model = quantized("LSQ", 4, data=False)
    model.load_state_dict(state)
    load_checkpoint(model, tmp_path / "x.pth", strict=True)
    assert not caplog.text and torch.equal(model(IMAGES), source(IMAGES))
    load_checkpoint(model, tmp_path / "x.pth")
    assert "does not record the method and bits of its 4 quantizers" in caplog.text


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"7", b"\xff"])
def test_a_damaged_grid_is_another(text: bytes, tmp_path: Path) -> None:
    state = quantized("LSQ", 4).state_dict()
    state["0.weight_quantizer.grid"] = torch.tensor(list(text), dtype=torch.uint8)
    torch.save(state, tmp_path / "x.pth")
    model = quantized("LSQ", 4)
    load_checkpoint(model, tmp_path / "x.pth")
    assert uninitialized(model) == ["0.weight_quantizer"]

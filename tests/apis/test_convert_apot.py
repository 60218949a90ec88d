"""Conversion of the APoT authors' networks: names, quantizers, errors; logits and accuracy of the published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lbitcls.commands.main import main
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.utils import Config, load_checkpoint
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import CheckpointError
from lbitcls.workflows import test_classifier as classify
from lbitcls.workflows.converting import convert_checkpoint
from lbitcls.workflows.converting_apot import apot_resnet20_config

CONFIGS = "configs/APoT/resnet20/published_{0}w{0}f.py"
BITS = (32, 4, 3, 2)
TOP1 = {32: 82.36, 4: 82.89, 3: 83.04, 2: 80.61}
"""Top-1 of the authors' code on all of `cifar10_jpg/test`, in percent."""


def published(bits: int, clip: float = 1.5) -> dict[str, Tensor]:
    """State dict with the names and shapes of the authors' files, with random values."""
    model = build_classifier(apot_resnet20_config(bits)["model"])
    state = {}
    for name, module in model.named_modules():
        theirs = name.removeprefix("backbone.").replace("head.fc", "fc")
        state |= {f"module.{theirs}.{key}": value for key, value in module.state_dict().items() if "." not in key}
        if bits < 32 and isinstance(module, nn.Conv2d) and theirs != "conv1":
            state |= {f"module.{theirs}.{key}": torch.tensor(clip) for key in ("act_alpha", "weight_quant.wgt_alpha")}
    return state


def write(folder: Path, bits: int = 4, name: str = "", drop: tuple[str, ...] = (), **changes: Any) -> Path:
    """Write such a file, without the tensors `drop`; `changes` replace tensors, `__` in their names is a dot."""
    changed = {f"module.{key.replace('__', '.')}": value for key, value in changes.items()}
    state = {key: value for key, value in (published(bits) | changed).items() if not key.endswith(drop or "\n")}
    path = folder / (name or f"res20_{bits}bit.pth.tar")
    torch.save({"epoch": 245, "state_dict": state, "best_prec": 92.47}, path)
    return path


def converted(config: dict, path: Path) -> Any:
    model: Any = build_mtransformer(config["quant_transformer"])(build_classifier(config["model"])).eval()
    load_checkpoint(model, path, strict=True)
    return model


@pytest.mark.parametrize("bits", BITS)
def test_conversion_by_command(bits: int, tmp_path: Path, capsys: Any) -> None:
    source, target = write(tmp_path, bits), tmp_path / "out.pth"
    assert main(["convert", str(source), str(target)]) == 0  # the format is found
    said = capsys.readouterr().out
    assert "ResNetCIFAROptionB" in said and f"'num_bit_w': {bits}" in said
    assert main(["convert", str(source), str(tmp_path / "named.pth"), "--format", "apot-resnet20"]) == 0
    meta = read_checkpoint(target)["meta"]
    assert meta["CLASSES"][3] == "cat" and Config.fromstring(meta["config"], ".py").model.backbone.depth == 20
    model = converted(apot_resnet20_config(bits), target)
    state = read_checkpoint(source)["state_dict"]
    assert torch.equal(model.backbone.layer2[0].downsample[0].weight, state["module.layer2.0.downsample.0.weight"])
    assert torch.equal(model.backbone.conv1.weight_quantizer.highest, state["module.conv1.weight"].max())
    assert model.backbone.conv1.input_quantizer is None and model.head.fc.input_quantizer is None
    inner = model.backbone.layer3[2].conv2
    assert (type(inner) is nn.Conv2d) == (bits == 32)
    if bits < 32:
        assert [q.clip.tolist() for q in (inner.weight_quantizer, inner.input_quantizer)] == [1.5, 1.5]
        assert not inner.input_quantizer.signed and inner.input_quantizer.num_bits == bits
    assert model.predict(torch.rand(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("bits", BITS)
def test_the_config_in_the_library_is_the_recorded_one(bits: int) -> None:
    cfg = Config.fromfile(CONFIGS.format(bits))
    assert {name: cfg[name].to_dict() for name in ("model", "quant_transformer")} == apot_resnet20_config(bits)


def test_bits_that_the_name_does_not_contain(tmp_path: Path, capsys: Any) -> None:
    source, target = write(tmp_path, 3, "best.pth"), tmp_path / "out.pth"
    assert main(["convert", str(source), str(target)]) == 2
    said = capsys.readouterr().err
    assert "best.pth does not record the bits" in said and "--bits N (2 to 8)" in said and not target.exists()
    assert main(["convert", str(source), str(target), "--bits", "3"]) == 0
    for given, expected in (("32", "so its bits must be 2 to 8; got 32"), ("9", "bits must be an integer from 2 to 8")):
        assert main(["convert", str(source), str(target), "--bits", given]) == 2
        assert expected in capsys.readouterr().err
    float_one = write(tmp_path, 32, "float.pth")
    assert main(["convert", str(float_one), str(target)]) == 0
    assert main(["convert", str(float_one), str(target), "--bits", "4"]) == 2
    assert "so its bits must be 32; got 4" in capsys.readouterr().err


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a tensor is missing": (dict(drop=("layer2.0.conv1.weight",)), "lacks: backbone.layer2.0.conv1.weight"),
    "a clip is missing": (dict(drop=("layer2.0.conv1.act_alpha",)), "lacks: backbone.layer2.0.conv1.input_quantizer"),
    "another tensor": (dict(layer4__weight=torch.ones(1)), "has in addition: backbone.layer4.weight"),
    "other classes": (dict(fc__weight=torch.ones(7, 64)), "has in other shapes: head.fc.weight"),
    "a clip of zero": (dict(layer1__0__conv1__act_alpha=torch.tensor(0.0)), "clip 0 for backbone.layer1.0.conv1.inp"),
    "a clip of nan": (dict(layer1__0__conv2__act_alpha=torch.tensor(torch.nan)), "contains the clip nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_network_is_refused(name: str, tmp_path: Path, capsys: Any) -> None:
    """Exit code 1, a message that says what was given and expected, no traceback, nothing overwritten."""
    changes, expected = WRONG[name]
    source, target = write(tmp_path, **changes), tmp_path / "out.pth"
    target.write_text("of before")
    assert main(["convert", str(source), str(target), "--format", "apot-resnet20"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert expected in said and "expected" in said and "Traceback" not in said
    assert target.read_text() == "of before"


def test_no_format_fits(tmp_path: Path, capsys: Any) -> None:
    source, target = tmp_path / "other.pth", tmp_path / "out.pth"
    torch.save({"features.0.weight": torch.ones(2, 2)}, source)
    assert main(["convert", str(source), str(target)]) == 1
    assert "is not a CIFAR ResNet with option-A shortcuts" in " ".join(capsys.readouterr().err.split())
    assert main(["convert", str(source), str(target), "--format", "apot-resnet20"]) == 1
    assert "is not a ResNet-20 of the APoT authors" in " ".join(capsys.readouterr().err.split())
    assert not target.exists()


def test_the_source_is_not_replaced_and_nothing_in_it_is_executed(tmp_path: Path, capsys: Any) -> None:
    source = write(tmp_path)
    before = source.read_bytes()
    assert main(["convert", str(source), str(source)]) == 2
    assert "would replace a file that this command uses" in capsys.readouterr().err and source.read_bytes() == before
    torch.save({"state_dict": published(4), "trap": pytest.raises}, source)
    with pytest.raises(CheckpointError, match="cannot be read as plain weights"):
        convert_checkpoint(source, tmp_path / "out.pth", "apot-resnet20")


# The published files, which are not part of the project


def source_of(bits: int, shared_data: Path) -> Path:
    source = shared_data / "published" / f"apot_res20_{bits}bit.pth.tar"
    if not source.is_file():
        pytest.skip(f"{source} is missing")
    return source


def rows_of(bits: int, shared_data: Path, folder: Path) -> tuple[dict[str, Any], Any]:
    """Results and rows of testing a published network on all JPEG test images."""
    convert_checkpoint(source_of(bits, shared_data), folder / "model.pth")
    rows = folder / "rows.npz"
    cfg = CONFIGS.format(bits)
    results = classify(cfg, folder / "model.pth", predictions=rows, data_root=str(shared_data))
    return results, np.load(rows)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_published_networks_image_by_image(bits: int, shared_data: Path, tmp_path: Path) -> None:
    """The authors' logits on every second test image, and their top-1 on all of them."""
    theirs = np.load(source_of(bits, shared_data).parent / "apot_res20_logits.npz")
    results, rows = rows_of(bits, shared_data, tmp_path)
    assert len(rows["paths"]) == 10000 and results["total"] == 10000
    assert all(map(str.endswith, rows["paths"][::2].tolist(), theirs["names"].tolist()))
    assert (rows["labels"][::2] == theirs["labels"]).all()
    given, expected = rows["logits"][::2], theirs[f"logits_{bits}"]
    same = (rows["predictions"][::2] == expected.argmax(1)).mean()
    difference = np.abs(given - expected).mean() / expected.std()
    least, most = (0.995, 5e-3) if bits == 2 else (0.999, 1e-3)
    assert same >= least and difference <= most, (same, difference)
    assert results["top-1"] == pytest.approx(TOP1[bits], abs=0.05)

"""`lbitcls doctor`: a healthy and an ill checkpoint, the bits of a float one, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_quant_stats import HOOK, LSQ

from lbitcls.analysis.illnesses import NAMES
from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.datasets import build_dataset
from lbitcls.utils.config import Config
from lbitcls.workflows.examining import examine_checkpoint


@pytest.fixture(scope="module")
def run(tiny_sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run with a float phase and the hook, a damaged copy of its checkpoint, and images."""
    folder = tmp_path_factory.mktemp("doctor")
    hooks = [HOOK, dict(type="PreciseBNHook", num_batches=8)]
    run = dict(custom_hooks=hooks, work_dir=str(folder / "run"), total_epochs=4, calibration=dict(epoch=2))
    cfg = Config({**tiny_sections, **LSQ, **run})
    cfg.dump(folder / "config.py")
    Config({**tiny_sections, "work_dir": str(folder / "run")}).dump(folder / "float.py")
    train_classifier(cfg)
    ill = torch.load(folder / "run" / "latest.pth", weights_only=True)
    ill["state_dict"]["backbone.conv2.input_quantizer.scale"].mul_(1e-4)
    ill["hooks"]["QuantStatsHook"]["reversals"]["backbone.conv2"]["frequency"].fill_(0.2)
    torch.save(ill, folder / "ill.pth")
    dataset = build_dataset(tiny_sections["data"]["test"])
    for index in range(12):
        path = folder / "images" / str(dataset.labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dataset.images[index, 0].numpy()).save(path)
    names = ("config.py", "float.py", "ill.pth", "images")
    files = {"good.pth": "run/latest.pth", "float.pth": "run/best_float_top-1.pth"}
    return {name: str(folder / files.get(name, name)) for name in (*names, *files)}


def test_a_healthy_model(run: dict[str, str], capsys: Any) -> None:
    assert main(["doctor", run["config.py"], run["good.pth"], "--num-images", "40"]) == 0
    assert "No illness found in 3 quantized layers on 40 images." in capsys.readouterr().out


def test_an_ill_model_worst_first(run: dict[str, str], tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "new" / "check.json"
    assert main(["doctor", run["config.py"], run["ill.pth"], run["images"], "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "in 3 quantized layers on 12 images, worst first:" in out and f"wrote {file}" in out
    assert out.index("broken: scale collapsed, backbone.conv2 (input)") < out.index("costly: oscillating weights")
    assert "100 % of the weights of backbone.conv2 oscillate between two integers." in out and "`" not in out
    assert "  Remedy: Calibrate again" in out
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["images"] == 12 and found["findings"][0]["illness"] == "scale collapsed"
    assert {finding["illness"] for finding in found["findings"]} <= set(NAMES)
    assert [grid["layer"] for grid in found["grids"]][::2] == ["backbone.conv1", "backbone.conv2", "head.fc"]
    assert found["oscillating"]["backbone.conv2"] == 1.0


@pytest.mark.parametrize("config", ["float.py", "config.py"])
def test_the_bits_of_a_float_model(run: dict[str, str], config: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "bits.json"
    given = [run[config], run["float.pth"], "--bits", "--num-images", "30", "--json", str(file)]
    assert main(["doctor", *given]) == 0
    lines, found = capsys.readouterr().out.splitlines(), json.loads(file.read_text(encoding="utf-8"))
    assert found["labelled"] and found["images"] == 30
    for layer in found["layers"]:
        cells = next(line.split() for line in lines if line.split()[:2] == [layer["name"], layer["kind"]])
        assert cells[-1] == str(layer["bits"])
        assert any(line.startswith(layer["name"]) and f"{layer['bits']} bits: {layer['why']}" in line for line in lines)
    assert [layer["name"] for layer in found["layers"]] == ["backbone.conv1", "backbone.conv2", "head.fc"]
    assert any("All layers at these bits, without training:" in line and "top-1" in line for line in lines)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["float.py", "float.pth"], "the config has no quant_transformer, so there is nothing to examine"),
        (["config.py", "float.pth"], "must be a quantized model's checkpoint; it has float weights"),
        (["config.py", "good.pth", "--bits"], "--bits needs a checkpoint with float weights"),
        (["config.py", "good.pth", "--num-images", "0"], "--num-images must be an integer ≥ 1; got 0"),
        (["config.py", "good.pth", "nowhere"], "there is no image or folder nowhere"),
        (["config.py", "good.pth", "--json", "good.pth"], "would replace"),
    ],
)
def test_mistakes(run: dict[str, str], given: list[str], message: str, capsys: Any) -> None:
    code = main(["doctor", *(run.get(word, word) for word in given)])
    assert code in (1, 2) and message in capsys.readouterr().err


@pytest.mark.slow
def test_the_quickstart_run_is_healthy(repo_root: Path, tmp_path: Path) -> None:
    """The first run of the documentation warns of nothing, from its first quantized step to its last."""
    cfg = Config.fromfile(repo_root / "configs" / "quickstart" / "digits_lsq_4w4f.py")
    cfg.merge_from_dict(
        {
            "work_dir": str(tmp_path / "run"),
            "+kernels": "plain",
            "+custom_hooks": [dict(type="QuantStatsHook", interval=20)],
            "export": None,
            "log_config.hooks": [dict(type="TextLoggerHook")],
            "+log_config.pictures": False,
        }
    )
    train_classifier(cfg)
    assert examine_checkpoint(cfg, tmp_path / "run" / "latest.pth") == []
    (log,) = (tmp_path / "run").glob("*.log")
    assert "WARNING" not in log.read_text()

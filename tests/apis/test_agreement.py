"""A checkpoint goes with a config of its own quantizers: bits are not among its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from calls import Delivered

from lbitcls.assembly.agreement import check_quantizers, with_grids
from lbitcls.commands.main import main
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.quant.calibration import uninitialized
from lbitcls.utils import Config
from lbitcls.utils.checkpoint import load_weights, read_checkpoint
from lbitcls.utils.errors import CheckpointError

CONV = "quant_transformer.quan_policy.Conv2d"


def check(given: Delivered, options: dict[str, Any], checkpoint: Path | None = None) -> None:
    """Compare the checkpoint with the config after setting keys of its `quant_transformer`."""
    cfg = Config.fromfile(given.config)
    cfg.merge_from_dict({f"+quant_transformer.{key}": value for key, value in options.items()})
    transformer = build_mtransformer(cfg.quant_transformer)
    check_quantizers(transformer, build_classifier(cfg.model), checkpoint or given.checkpoint)


def written(given: Delivered, target: Path, **changes: Any) -> Path:
    """The checkpoint with other meta data or tensors."""
    content = read_checkpoint(given.checkpoint)
    content["meta"] |= changes.get("meta", {})
    content["state_dict"] |= changes.get("state_dict", {})
    torch.save(content, target)
    return target


def written_anew(given: Delivered, target: Path, state_dict: dict[str, Any]) -> Path:
    """The checkpoint with these tensors alone."""
    torch.save({**read_checkpoint(given.checkpoint), "state_dict": state_dict}, target)
    return target


@pytest.mark.parametrize("verb", ["test", "export", "infer", "calibrate", "compare"])
def test_no_command_takes_weights_of_other_bits(verb: str, delivered: Delivered, tmp_path: Path, capsys: Any) -> None:
    cfg = Config.fromfile(delivered.config)
    cfg.merge_from_dict({f"{CONV}.num_bit_w": 2})
    cfg.dump(tmp_path / "two.py")
    image, out = tmp_path / "a.png", tmp_path / "out"
    image.write_bytes(b"")
    files = [str(tmp_path / "two.py"), str(delivered.checkpoint)]
    arguments = {
        "test": files,
        "export": [*files, "--out", f"{out}.onnx"],
        "infer": [*files, str(image)],
        "calibrate": [*files, "--out", f"{out}.pth"],
        "compare": [str(image), *files, "--save-path", f"{out}.html"],
    }
    assert main([verb, *arguments[verb]]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"CheckpointError: {delivered.checkpoint} was made with other quantizers than the config")
    layer = "backbone.layer1.0.conv1: LSQ, weight 4 bits, input 4 bits there, LSQ, weight 2 bits, input 4 bits here"
    assert layer in said and "… and 2 more" in said and "lbitcls calibrate" in said
    assert "head.fc" not in said and "backbone.conv1:" not in said, "these are as they were"
    assert not list(tmp_path.glob("out*"))


def test_bits_that_are_overridden_are_refused_likewise(delivered: Delivered, capsys: Any) -> None:
    files = [str(delivered.config), str(delivered.checkpoint)]
    assert main(["test", *files, "--options", f"{CONV}.num_bit_a=3"]) == 1
    assert "input 4 bits there, LSQ, weight 4 bits, input 3 bits here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quan_policy.Conv2d.type": "EWGSConv"}, "LSQ, weight 4 bits, input 4 bits there, EWGS, weight 4 bits"),
        ({"quan_policy.Conv2d.per_channel": True}, "there, LSQ, weight 4 bits per channel, input 4 bits here"),
        ({"special_layers": None}, "head.fc: LSQ, weight 8 bits, input 8 bits there, LSQ, weight 4 bits"),
        (
            {"special_layers": None, "exclude_layers": ["head"]},
            "head.fc: LSQ, weight 8 bits, input 8 bits there, float",
        ),
        ({"fold_bn": True}, "fold_bn: False there, True here"),
        ({"quan_policy.Conv2d.signed": True}, r"LSQ, weight 4 bits, input 4 bits \(signed=True\) here"),
    ],
    ids=["method", "channels", "special", "float", "fold_bn", "options"],
)
def test_what_is_compared(options: dict[str, Any], message: str, delivered: Delivered) -> None:
    with pytest.raises(CheckpointError, match=message):
        check(delivered, options)


def test_another_spelling_of_the_same_passes(delivered: Delivered) -> None:
    conv, linear = (dict(type=f"LSQ{end}", nbits_w=8, bit_a=8) for end in ("Conv2d", "Linear"))
    check(delivered, {"type": "ModelTransformer", "special_layers.convert_type": [conv, linear]})


def test_what_cannot_be_compared_passes(delivered: Delivered, tmp_path: Path) -> None:
    """Float weights, a float phase, another tool's checkpoint, classes of somebody's own, another network's config."""
    other = {"quan_policy.Conv2d.num_bit_w": 2}
    check(delivered, other, delivered.checkpoint.with_name("float.pth"))
    state = read_checkpoint(delivered.checkpoint)["state_dict"]
    off = {name: torch.tensor(False) for name in state if name.endswith(".enabled")}
    check(delivered, other, written(delivered, tmp_path / "phase.pth", state_dict=off))
    torch.save(state, tmp_path / "bare.pth")
    check(delivered, other, tmp_path / "bare.pth")
    torch.save(state, tmp_path / "older.pth", _use_new_zipfile_serialization=False)
    check(delivered, other, tmp_path / "older.pth")
    text = read_checkpoint(delivered.checkpoint)["meta"]["config"]
    others = [
        text.replace("LSQConv", "MyConv"),
        text.replace("head.fc", "head.last"),
        "quant_transformer = 'x'",
        "",
        "(",
        None,
    ]
    for number, config in enumerate(others):
        check(delivered, other, written(delivered, tmp_path / f"{number}.pth", meta={"config": config}))
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        check(delivered, other, tmp_path / "missing.pth")
    network = {name: value for name, value in state.items() if "layer" not in name}
    check(delivered, other, written_anew(delivered, tmp_path / "network.pth", network))


def test_training_may_start_from_other_bits(delivered: Delivered, tmp_path: Path) -> None:
    options = [f"{CONV}.num_bit_w=2", "total_epochs=1", "calibration.epoch=0", "export=none", "log_config.hooks=[]"]
    flags = ["--load-from", str(delivered.checkpoint), "--work-dir", str(tmp_path), "--no-validate"]
    assert main(["train", str(delivered.config), *flags, "--options", *options]) == 0
    assert (tmp_path / "latest.pth").exists()


def test_a_checkpoint_of_before_is_told_its_grids_by_its_config(delivered: Delivered, caplog: Any) -> None:
    """Its tensors do not say them; of the layers that the config quantizes otherwise first values are taken anew."""
    content = read_checkpoint(delivered.checkpoint)
    told = content["state_dict"]
    content["state_dict"] = {name: value for name, value in told.items() if not name.endswith(".grid")}
    cfg = Config.fromfile(delivered.config)
    before = torch.random.get_rng_state()
    completed = with_grids(content, cfg.model)
    assert torch.equal(torch.random.get_rng_state(), before), "a run draws what it would have drawn"
    assert completed.keys() == told.keys() and all(torch.equal(told[name], completed[name]) for name in told)
    cfg.merge_from_dict({f"{CONV}.num_bit_w": 2})
    model = build_mtransformer(cfg.quant_transformer)(build_classifier(cfg.model))
    load_weights(model, completed, delivered.checkpoint)
    anew = uninitialized(model)
    assert len(anew) == 6 and all(name.startswith("backbone.layer") and "weight_q" in name for name in anew)
    assert "anew (LSQ, 4 bits, integers -8 to 7 there; LSQ, 2 bits, integers -2 to 1 here): backbone.la" in caplog.text
    for unknown in ({**content, "meta": {}}, {**content, "state_dict": told}):
        assert with_grids(unknown, cfg.model) is unknown["state_dict"]


def test_a_run_does_not_go_on_with_other_bits(delivered: Delivered, tmp_path: Path, capsys: Any) -> None:
    options = ["total_epochs=1", "calibration.epoch=0", "export=none", "log_config.hooks=[]"]
    command = ["train", str(delivered.config), "--work-dir", str(tmp_path), "--no-validate"]
    assert main([*command, "--options", *options]) == 0
    before = (tmp_path / "latest.pth").read_bytes()
    assert main([*command, "--resume", "--options", *options, "total_epochs=2", f"{CONV}.num_bit_w=2"]) == 1
    assert "weight 4 bits, input 4 bits there, LSQ, weight 2 bits" in capsys.readouterr().err
    assert (tmp_path / "latest.pth").read_bytes() == before

"""Runs with bits that decrease: stages, best weights, resuming, and checkpoints of an earlier stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import finish, launch
from test_resume import end, same_run

from lbitcls.apis import init_model, train_classifier
from lbitcls.apis import test_classifier as classify
from lbitcls.commands.main import main
from lbitcls.core.hooks.progressive_hook import ProgressiveHook
from lbitcls.settings.progressive import ProgressiveConfig
from lbitcls.settings.training_sections import CalibrationConfig
from lbitcls.utils.config import Config
from lbitcls.utils.errors import CheckpointError, ConfigError


def sections(method: str = "LSQ", **progressive: Any) -> dict[str, Any]:
    """Three stages in three epochs; the first convolution keeps its 8 bits."""

    def entry(bits: int) -> dict[str, Any]:
        return dict(type=f"{method}Conv", num_bit_w=bits, num_bit_a=bits)

    special = dict(layers_name=["backbone.conv1"], convert_type=[entry(8)])
    return dict(
        quant_transformer=dict(type="mTransformerV2", quan_policy=dict(Conv2d=entry(2)), special_layers=special),
        calibration=dict(epoch=0, num_batches=2),
        progressive={"bits": [8, 4, 2], "epochs": [1, 1], **progressive},
        total_epochs=3,
        kernels="plain",
    )


def bits_in(path: Path | str) -> dict[str, int]:
    """Return the bits that a checkpoint's quantizers record."""
    state = torch.load(path, weights_only=True)["state_dict"]
    grids = {name: json.loads(bytes(text.tolist())) for name, text in state.items() if name.endswith(".grid")}
    return {name.removeprefix("backbone.").removesuffix("_quantizer.grid"): g["bits"] for name, g in grids.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_sections: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """A finished run of three stages."""
    cfg = Config({**tiny_sections, **sections(), "work_dir": str(tmp_path_factory.mktemp("run"))})
    return cfg, train_classifier(cfg)


def test_stages_of_a_run(run: tuple[Config, dict[str, Any]]) -> None:
    cfg, summary = run
    folder = Path(cfg.work_dir)
    for epoch, bits in enumerate((8, 4, 2), start=1):
        found = bits_in(folder / f"epoch_{epoch}.pth")
        assert found == {"conv1.weight": 8, "conv1.input": 8, "conv2.weight": bits, "conv2.input": bits}
    log = next(folder.glob("*.log")).read_text()
    assert "W8A8 from epoch 1, W4A4 from epoch 2, W2A2 from epoch 3" in log
    assert "Stage 3 of 3 from epoch 3: W2A2; 2 quantizers changed, initialized from 2 batches." in log
    assert [summary[phase]["epoch"] for phase in ("w8a8", "w4a4", "quantized")] == [1, 2, 3]


def test_best_weights_are_those_of_the_last_stage(make_config: Any) -> None:
    """With a learning rate of 0 from the first stage's last epoch on, fewer bits on kept ranges are worse."""
    cfg = make_config(
        **sections(epochs=[4, 1], ranges="keep")
        | dict(total_epochs=6, lr_config=dict(policy="step", step=[3], gamma=1e-9))
    )
    summary = train_classifier(cfg)
    assert summary["w8a8"]["top1"] > summary["quantized"]["top1"]
    assert summary["quantized"]["epoch"] == 6
    assert bits_in(summary["checkpoint"])["conv2.weight"] == 2


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("LSQ", dict(ema=dict(decay=0.9), optimizer=dict(type="AdamW", lr=0.01))),
        pytest.param("APoT", dict(ema=dict(decay=0.9)), marks=pytest.mark.slow),
        pytest.param("TorchQAT", dict(amp="bf16"), marks=pytest.mark.slow),
        pytest.param(
            "DSQ", dict(progressive=dict(bits=[8, 4, 2], epochs=[1, 1], ranges="keep")), marks=pytest.mark.slow
        ),
        ("LSQPlus", dict(progressive=dict(bits=[8, 4, 2], epochs=[1, 1], ranges="keep"), ema=dict(decay=0.9))),
    ],
)
def test_resumed_run_is_bit_identical(make_config: Any, method: str, extra: dict[str, Any]) -> None:
    given = {**sections(method), "checkpoint_config": dict(interval=5, by_epoch=False), **extra}
    whole, ended = make_config("whole", **given), make_config("ended", **given)
    train_classifier(whole)
    end(ended, "after_iter", 17)  # in the middle of the second stage
    train_classifier(ended, resume=True)
    same_run(whole, ended)
    told = "their ranges are kept" if "progressive" in extra else "initialized from 2 batches"
    assert f"2 quantizers changed, {told}." in next(Path(whole.work_dir).glob("*.log")).read_text()


def test_resumed_between_two_stages(make_config: Any) -> None:
    whole, ended = make_config("whole", **sections()), make_config("ended", **sections())
    train_classifier(whole)
    end(ended, "after_epoch", 2)
    train_classifier(ended, resume=True)
    same_run(whole, ended)


def test_float_epochs_come_first(make_config: Any) -> None:
    given = sections(bits=[(4, 8), (2, 2)], epochs=[1]) | dict(calibration=dict(epoch=1, num_batches=2))
    cfg = make_config(**given)
    summary = train_classifier(cfg)
    assert [summary[phase]["epoch"] for phase in ("float", "w4a8", "quantized")] == [1, 2, 3]
    assert bits_in(Path(cfg.work_dir) / "epoch_2.pth")["conv2.input"] == 8


def test_checkpoint_of_a_stage_has_its_true_bits(
    run: tuple[Config, dict[str, Any]], caplog: Any, tmp_path: Path
) -> None:
    cfg, _ = run
    path = Path(cfg.work_dir) / "epoch_2.pth"
    with caplog.at_level("INFO"):
        model = init_model(cfg, path, device="cpu")
    assert model.backbone.conv2.weight_quantizer.num_bits == 4
    assert "stage 2 of 3 of progressive quantization: layers have W4A4, not the final W2A2" in caplog.text
    log = [json.loads(line) for line in (Path(cfg.work_dir) / "log.jsonl").read_text().splitlines()]
    validated = next(record for record in log if record["mode"] == "val" and record["epoch"] == 2)
    assert classify(cfg, path)["top-1"] == pytest.approx(validated["top-1"])
    plain = Config({key: value for key, value in cfg._cfg_dict.items() if key != "progressive"})
    with pytest.raises(CheckpointError, match="LSQ, 4 bits.* there; LSQ, 2 bits"):
        classify(plain, path)


@pytest.mark.slow
def test_two_processes_change_bits_together(make_config: Any, tmp_path: Path) -> None:
    """Buffers of APoT change their shapes under DDP; both ranks have the same weights."""
    hooks = [dict(type="Fingerprint")]
    given = sections("APoT")
    make_config(custom_hooks=hooks, **given, options={"data.samples_per_gpu": 240}).dump(tmp_path / "tiny.py")
    code, _, errors = finish(launch(tmp_path / "tiny.py", "--no-validate"))
    assert code == 0, errors
    assert bits_in(tmp_path / "work" / "latest.pth")["conv2.weight"] == 2
    first, second = (torch.load(tmp_path / "work" / f"rank_{rank}.pt") for rank in (0, 1))
    names = [name for name in first if "running" not in name]  # a process's own until a validation
    assert len(names) > 12 and [first[name] for name in names] == [second[name] for name in names]


@pytest.mark.slow
def test_compiled_model_is_compiled_again(make_config: Any) -> None:
    """With a learning rate of almost 0 each stage has the losses of its bits, compiled or not."""
    still = sections(bits=[8, 2], epochs=[1]) | dict(total_epochs=2, lr_config=dict(policy="fixed"))
    losses = {}
    for name in ("eager", "compiled"):
        cfg = make_config(name, {"model.head.dropout": 0.0}, **still, compile=name == "compiled")
        cfg.optimizer = dict(type="SGD", lr=1e-12)
        train_classifier(cfg)
        records = map(json.loads, (Path(cfg.work_dir) / "log.jsonl").read_text().splitlines())
        losses[name] = {r["epoch"]: r["loss"] for r in records if r["mode"] == "train"}
    assert losses["compiled"] == pytest.approx(losses["eager"], abs=1e-5)
    assert abs(losses["eager"][1] - losses["eager"][2]) > 1e-4
    assert bits_in(Path(cfg.work_dir) / "latest.pth")["conv2.weight"] == 2


WRONG = [
    (dict(bits=[8, 4, 3]), "progressive.bits must end with the fewest bits that quant_transformer sets, which are 2"),
    (dict(bits=[4, 8, 2]), "progressive: bits must decrease from stage to stage; got"),
    (dict(bits=[8]), "progressive.bits must be a list of two or more bits"),
    (dict(bits=[9, 4, 2]), "progressive.bits must be a list of two or more bits"),
    (dict(epochs=[1]), "progressive: epochs must be 2 durations for 3 stages"),
    (dict(epochs=[0, 1]), "progressive.epochs must be a list of integers ≥ 1"),
    (dict(epochs=[2, 1]), "the last stage begins after 3 epochs .*total_epochs is 3"),
    (dict(ranges="kept"), "progressive.ranges must be one of 'new', 'keep'; got 'kept'"),
    (dict(bit=[8, 2]), "progressive does not accept 'bit'"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_values_are_refused_before_training(make_config: Any, wrong: dict[str, Any], message: str) -> None:
    cfg = make_config(**sections(**wrong))
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        train_classifier(cfg)
    assert not list(Path(cfg.work_dir).glob("*.pth"))


def test_float_model_has_no_stages(make_config: Any) -> None:
    with pytest.raises(ConfigError, match="progressive is for quantizers"):
        train_classifier(make_config(progressive=dict(bits=[8, 2], epochs=[1])))


def test_check_accepts_stages(write_config: Any) -> None:
    assert main(["check", str(write_config(**sections()))]) == 0


def test_check_finds_wrong_stages(write_config: Any, capsys: Any) -> None:
    assert main(["check", str(write_config(**sections(bits=[8, 4, 3])))]) != 0
    assert "progressive.bits must end" in capsys.readouterr().err


def test_stage_of_each_epoch() -> None:
    hook = ProgressiveHook(ProgressiveConfig(bits=(8, 4, 2), epochs=(2, 3)), CalibrationConfig(epoch=1))
    assert [hook.stage(epoch) for epoch in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]

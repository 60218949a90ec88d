"""`lbitcls check`: all mistakes at once, or a table of what the run will do; nothing is written or fetched."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest

from lbitcls.commands.main import main
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError
from lbitcls.workflows.checking import check_config

ROOT = Path(__file__).resolve().parent.parent.parent
QUICKSTART = ROOT / "configs" / "quickstart" / "digits_lsq_4w4f.py"
BASE = Config.fromfile(QUICKSTART).to_dict()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def changed(**options: Any) -> Config:
    """The quickstart's config with values at dotted keys, `__` for each dot."""
    cfg = Config(copy.deepcopy(BASE))
    cfg.merge_from_dict({f"+{key.replace('__', '.')}": value for key, value in options.items()})
    return cfg


def problems(cfg: Config) -> list[str]:
    """What the check finds, without the numbers."""
    with pytest.raises(ConfigError) as caught:
        check_config(cfg)
    first, *listed = str(caught.value).splitlines()
    assert first.endswith("has one problem:" if len(listed) == 1 else f"has {len(listed)} problems:")
    return [line.partition(". ")[2] for line in listed]


def test_a_good_config_is_summarized_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(QUICKSTART), "--device", "cpu"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "Check: nothing is wrong",
        "classes 10: 0, 1, 2,",
        "images train 1,437, val 360, test 360",
        "a batch img (64, 1, 8, 8), gt_label (64,)",
        "parameters 75,002 in all",
        "layers quantized 8 of 15: 1 LSQConv W8A8, 6 LSQConv W4A4, 1 LSQLinear W8A8",
        "training 30 epochs of 23 iterations on cpu",
        "optimizer SGD, lr 0.1, policy CosineAnnealing",
        "quantizers on from epoch 21",
        "validation on data.val, after every epoch",
        "at the end model.onnx and float.onnx",
        "work directory work_dirs/digits_lsq_4w4f",
        "first step loss 2.",
    ):
        assert text in told, text
    assert not list(tmp_path.iterdir())


def test_independent_mistakes_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["evaluation.interval=0", "+lr_config.gama=3", "data.train.split=trian", "+ema.decay=2", "+export.opset=9"]
    wrong += ["model.head.in_channels=63", "quant_transformer.quan_policy.Conv2d.num_bit_w=9", "optimizer.lr=-1"]
    assert main(["check", str(QUICKSTART), "--options", *wrong]) == 2
    told = capsys.readouterr().err
    assert "digits_lsq_4w4f.py has 8 problems:" in told
    expected = (
        "evaluation.interval must be an integer ≥ 1; got 0.",
        "lr_config does not accept 'gama'",
        "ema.decay must be",
        "export.opset",
    )
    expected += ("data.train: Digits: split must be", "write in_channels=64", "quan_policy.Conv2d: LSQConv (num_bit_w)")
    for text in (*expected, "optimizer: SGD rejects"):
        assert text in told, text
    assert not list(tmp_path.iterdir())


def test_a_wrong_section_does_not_hide_what_the_step_shows() -> None:
    found = problems(changed(checkpoint_config__interval=0, evaluation__save_best="top-3", lr_config__gama=1))
    assert len(found) == 3 and "checkpoint_config.interval" in found[0] + found[1] + found[2]
    found = problems(
        changed(seed=-1, model__head__loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, num_classes=9))
    )
    assert len(found) == 2 and found[0].startswith("seed must be") and "num_classes" in found[1] + found[0]


def where(found: list[str]) -> list[str]:
    return sorted(message.partition(":")[0].partition(" ")[0] for message in found)


def test_every_wrong_section_of_a_session_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    imports = dict(imports=["no_such_module", "nor_this"])
    session = dict(seed=-1, device="gpuu", log_level="LOUD", num_threads=0, work_dir="file/run", custom_imports=imports)
    found = problems(changed(**session, resume_from="gone.pth", load_from="lost.pth", gpu_ids=0))
    named = ("seed must be", "'gpuu'", "'LOUD'", "num_threads must", "file/run", "gone.pth", "lost.pth", "gpu_ids must")
    for text in (*named, "no_such_module cannot", "nor_this cannot"):
        assert [text in message for message in found].count(True) == 1, (text, found)
    assert len(found) == 10


def test_every_wrong_hook_is_named() -> None:
    hooks = [
        dict(type="UnfreezHook"),
        dict(type="PreciseBNHook", num_batches=-1, intervall=2, priority="LOW"),
        dict(type="UnfreezeHook", epoch=1, layers=["bakbone"]),
        dict(type="UnfreezeHook", epoch=1, layers=["head"], priority="LOW"),
        dict(type="UnfreezeHook", epoch=1, layers=["haed"], priority="LOWW"),
    ]
    found = problems(changed(custom_hooks=hooks, log_config__hooks=[dict(type="X"), dict(type="TextLoggerHook", a=1)]))
    places = [
        "custom_hooks.0",
        "custom_hooks.1",
        "custom_hooks.1",
        "custom_hooks.2",
        "custom_hooks.4",
        "custom_hooks.4",
    ]
    assert where(found) == [*places, "log_config.hooks.0", "log_config.hooks.1"], found


def test_every_wrong_part_of_the_model_is_named() -> None:
    wrong = dict(backbone__depth="x", backbone__base_chanels=3, neck=dict(type="GlobalPool"), head__in_channels=-3)
    wrong |= dict(head__num_clases=3, head__loss=dict(type="CrossEntropyLoss", loss_weight="x", weigth=1), foo=3)
    found = problems(changed(**{f"model__{key}": value for key, value in wrong.items()}))
    parts = ["model", "model.backbone", "model.backbone", "model.head", "model.head", "model.head.loss"]
    assert where(found) == [*parts, "model.head.loss", "model.neck"], found
    alone = problems(changed(model__head__in_channels=63))  # each part is right
    assert alone == [
        "model.head.in_channels=63, but the last feature of ResNetCIFAROptionA has 64 channels; write in_channels=64."
    ]


def test_every_wrong_entry_step_and_argument_is_named() -> None:
    steps = [dict(type="Resise", size=8), dict(type="RandomCrop", sise=3), dict(type="v2.RandomRotation", degree=3)]
    policy = dict(Conv2d=dict(type="LSQKonv"), Linear=dict(type="LSQLinear", num_bit_w=9, num_bit_a=4, bits=4))
    options = dict(data__train__pipeline=steps, data__train__splitt=3, optimizer__lrr=1, optimizer__momentm=1)
    found = problems(changed(**options, quant_transformer__quan_policy=policy, quant_transformer__fold_bn="no"))
    data = ["data.train", *(f"data.train.pipeline.{number}" for number in range(3))]
    entries = ["quan_policy.Conv2d", "quan_policy.Linear", "quan_policy.Linear", "quant_transformer.fold_bn"]
    assert where(found) == sorted(["SGD", "SGD", *data, *entries]), found


def test_numbers_of_one_are_singular(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = changed(total_epochs=1, calibration__epoch=0, data__samples_per_gpu=1437, export=None)
    rows = dict(check_config(cfg))
    assert rows["training"] == "1 epoch of 1 iteration on cpu" and "1 epoch of 1 iteration" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(custom_hooks=[dict(type="UnfreezeHook", epoch=99, layers=["head"])]),
            "epoch=99, but the run has only",
        ),
        (dict(load_from="gone.pth"), "gone.pth"),
        (dict(resume_from="gone.pth"), "gone.pth"),
        (dict(calibration__epoch=30), "epochs 0 to 29, so its quantizers would never be switched on. Use --options"),
        (dict(device="gpuu"), "gpuu"),
        (dict(log_level="LOUD"), "log_level 'LOUD' is unknown"),
        (dict(work_dir="file/run"), "nothing can be written to the work directory file/run"),
        (dict(model__head__num_classes=9), "labels up to 9"),
        (dict(model__backbone__in_channels=3), "needs images (N, 3, H, W); got (16, 1, 8, 8)"),
        (dict(custom_hooks=[dict(type="UnfreezeHook", epoch=1, layers=["bakbone"])]), "bakbone"),
        (dict(model__head__loss__loss_weight=1e38 * 1e2), "the loss of the first step is"),
        (dict(data__val=None), "data.val"),
        (dict(custom_imports=dict(imports=["no_such_module"])), "no_such_module cannot be imported"),
        (dict(total_epochs=None), "training needs total_epochs"),
        (dict(model=None, optimizer__lr=-1.0), "SGD rejects its settings"),
    ],
)
def test_what_training_would_meet_later_is_found(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    (tmp_path / "file").write_text("")
    assert any(message in told for told in problems(changed(**options)))


def test_nothing_is_fetched_or_compiled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the check uses the net, or compiles")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", refuse)
    cfg = changed(model__pretrained="torchvision://resnet18", compile=True, kernels="fused", export=None)
    assert check_config(cfg)[-1] == (
        "not checked",
        "pretrained='torchvision://resnet18', which training may download",
    )
    mnist = dict(type="MNIST", split="train", data_prefix="nowhere", download=True, pipeline=[])
    assert check_config(changed(data__calibration=mnist, export=None))[-1] == (
        "not checked",
        "data.calibration, which training will download",
    )


def test_the_config_stays_as_it_is() -> None:
    cfg = changed(seed=None, model__pretrained=None)
    before = cfg.pretty_text
    check_config(cfg)
    assert cfg.pretty_text == before


def test_a_check_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from lbitcls.quant.kernels import selection
    from lbitcls.utils.logging import get_logger

    monkeypatch.setattr(selection, "_active", None)
    get_logger().setLevel("INFO")
    assert check_config(QUICKSTART)
    assert selection._active is None and get_logger().level == logging.INFO

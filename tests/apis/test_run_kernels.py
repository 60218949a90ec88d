"""Kernels of a run: the config's, or those of the run that it resumes; a machine that cannot run them says a way on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_resume import QUANT

from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.quant.kernels import machine, selection
from lbitcls.settings.sections import read_settings
from lbitcls.utils.errors import ConfigError, DependencyError
from lbitcls.utils.logging import get_logger
from lbitcls.workflows import run_kernels
from lbitcls.workflows.checking import check_config

SESSION: Any = SimpleNamespace(device=torch.device("cpu"), logger=get_logger())


@pytest.fixture(autouse=True)
def _kernels_afterwards() -> Iterator[None]:
    with selection.restored_kernels():
        yield


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that runs all kernels, and compiles nothing."""
    monkeypatch.setattr(selection, "can_compile", lambda device: True)
    monkeypatch.setattr(selection, "compiled", lambda formula: formula)
    monkeypatch.setattr(machine, "find_obstacle", lambda: "")
    monkeypatch.setattr(machine, "integers_are_fast", lambda: True)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "can_compile", lambda device: False)


def choose(kernels: Any, saved: str | None) -> str | None:
    start = None if saved is None else (Path("latest.pth"), {"meta": {"kernels": saved}})
    return run_kernels.choose_kernels(read_settings(dict(QUANT, kernels=kernels)), start, SESSION)


@pytest.mark.parametrize(
    ("kernels", "saved", "chosen"),
    [
        ("auto", None, "integer"),
        ("auto", "plain", "plain"),
        ("auto", "integer-int8", "integer-int8"),
        ("integer-int8", "integer-int8", "integer-int8"),
        (dict(kind="integer", gradients="int8"), "integer-int8", "integer-int8"),
        ("plain", "integer", "plain"),
        ("integer", "integer-int8", "integer"),
        ("fused", None, "fused"),
    ],
)
def test_a_resumed_run_keeps_its_kernels_unless_the_config_names_others(
    kernels: Any, saved: str | None, chosen: str, able: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lbitcls")
    assert choose(kernels, saved) == chosen
    assert selection.kernels_name(selection.active_kind(), selection.active_gradients()) == chosen
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    differs = f"kernels='{chosen}', but the run was started with '{saved}': it continues differently."
    assert warned == ([] if saved in (None, chosen) else [differs])
    assert ("The run was started with them." in caplog.text) == (saved == chosen)
    assert f"Quantizers run {chosen.partition('-')[0]} kernels" in caplog.text


@pytest.mark.parametrize(
    ("sections", "chosen", "reason"),
    [
        (dict(), "integer", "faster than floats"),
        (dict(channels_last=True), "integer", "faster than floats"),
        (dict(compile=True), "fused", "no integer products: in a compiled model"),
        (dict(amp=dict(dtype="bfloat16"), channels_last=True), "fused", "no integer products: under autocast"),
    ],
)
def test_automatic_kernels_are_the_faster_ones(
    sections: dict[str, Any], chosen: str, reason: str, able: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lbitcls")
    assert run_kernels.choose_kernels(read_settings(dict(QUANT, **sections)), None, SESSION) == chosen
    assert reason in caplog.text


@pytest.mark.parametrize("fast", [True, False])
def test_the_log_says_where_bf16_does_not_pay(
    fast: bool, able: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "bf16_is_fast", lambda: fast)
    caplog.set_level("INFO", "lbitcls")
    assert choose("integer-bf16", None) == "integer-bf16"
    assert ("gradients in bf16, which is not faster than float32 here." in caplog.text) == (not fast)


def test_all_processes_run_the_kernels_that_the_weakest_machine_runs(
    able: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_kernels, "gather_objects", lambda name: [name, "fused"])
    assert choose("auto", None) == selection.active_kind() == "fused"
    monkeypatch.setattr(run_kernels, "gather_objects", lambda name: [])  # another rank receives the first one's choice
    monkeypatch.setattr(run_kernels, "broadcast_object", lambda name: "plain")
    assert choose("auto", None) == selection.active_kind() == "plain"


def test_a_run_goes_on_without_a_compiler_in_the_way_that_the_message_names(
    write_config: Callable[..., Path], make_config: Any, no_compiler: None, capsys: Any
) -> None:
    saved = "integer-int8"
    short: Any = dict(QUANT, total_epochs=1, options={"calibration.epoch": 0})
    cfg = make_config(**short, kernels="plain")
    train_classifier(cfg)
    latest = Path(cfg.work_dir, "latest.pth")
    content = torch.load(latest, weights_only=True)
    content["meta"]["kernels"] = saved  # as a machine with a compiler left it
    torch.save(content, latest)
    config = write_config(**{**short, "total_epochs": 2})
    assert main(["train", str(config), "--resume"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"latest.pth is a run with {saved} kernels. kernels='integer' compiles for cpu and needs" in told
    assert "use kernels='plain'. Set in the config, or by --options kernels=…, other kernels continue the run" in told
    assert main(["train", str(config), "--resume", "--options", "kernels=plain"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"kernels='plain', but the run was started with '{saved}': it continues differently." in shown
    assert torch.load(latest, weights_only=True)["meta"]["kernels"] == "plain"
    assert main(["train", str(config), "--resume", "--options", "kernels=fused"]) == 1
    assert "kernels='fused' compiles for cpu and needs" in capsys.readouterr().err


def test_a_check_finds_that_training_lacks_a_compiler(make_config: Any, no_compiler: None, tmp_path: Path) -> None:
    for kernels in ("fused", "integer-int8"):
        with pytest.raises(ConfigError, match="one problem:.*\n.*compiles for cpu and needs a C\\+\\+ compiler"):
            check_config(make_config(**QUANT, kernels=kernels))
        with pytest.raises(DependencyError):
            train_classifier(make_config(**QUANT, kernels=kernels))
    for sections in (dict(kernels="fused"), dict(QUANT, kernels="auto")):  # a float model needs no kernels
        check_config(make_config(**sections))
    torch.save(dict(meta=dict(kernels="fused"), state_dict={}), tmp_path / "run.pth")
    with pytest.raises(ConfigError, match="one problem:.*\n.*run.pth is a run with fused kernels"):
        check_config(make_config(**QUANT, resume_from=str(tmp_path / "run.pth")))


def test_a_check_finds_that_the_machine_multiplies_no_integers(
    make_config: Any, able: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_config(make_config(**QUANT, kernels="integer"))
    monkeypatch.setattr(machine, "find_obstacle", lambda: "no VNNI")
    with pytest.raises(ConfigError, match="kernels='integer' cannot run: no VNNI. Use kernels='fused'"):
        check_config(make_config(**QUANT, kernels="integer"))

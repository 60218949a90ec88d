"""What a run shows: one line of plan, one row per epoch, a bar at a terminal; the log file has the rest."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from calls import ROOT, Delivered, command, on_terminal

from lbitcls.apis import train_classifier
from lbitcls.commands.main import main
from lbitcls.core.hooks import Hook
from lbitcls.core.hooks.log import LogHook
from lbitcls.tracking.epoch_rows import EpochRows, Row, columns_of, header, line_width, row_line, seconds_text
from lbitcls.tracking.model_bits import describe_quantization
from lbitcls.tracking.terminal import seconds_left
from lbitcls.utils.logging import DETAIL, DISPLAY, setup_logger

QUANT = dict(
    type="mTransformerV2",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4), Linear=dict(type="LSQLinear", num_bit_w=8, num_bit_a=8)
    ),
)
ROW = re.compile(
    r" +(\d+)/(\d+) +(\d+\.\d{4}) +(\d+\.\d\d) +(\d+\.\d{4}) +(\d+\.\d\d) +(\d+\.\d\d) +\S+ +\d+\.\d s(  best)?"
)


def log_text(folder: Any) -> str:
    return "".join(path.read_text() for path in sorted(Path(folder).glob("*.log")))


def rows_in(text: str) -> list[re.Match[str]]:
    return [found for line in text.splitlines() if (found := ROW.fullmatch(line))]


def plain(shown: str) -> str:
    """What a terminal shows, without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n")


def test_a_pipe_gets_the_plan_and_a_row_per_epoch(make_config: Any, capsys: Any) -> None:
    cfg = make_config(total_epochs=3, quant_transformer=QUANT, calibration=dict(epoch=2, num_batches=2))
    train_classifier(cfg)
    shown = capsys.readouterr().out
    before, _, after = shown.partition("  epoch    loss   top-1")
    plan = [line for line in before.splitlines() if line.startswith("TinyNet: ")]
    assert len(plan) == 1 and len(before.splitlines()) <= 3
    assert re.fullmatch(
        r"TinyNet: LSQ W4A4 .*, \d of \d layers quantized from epoch 3; [\d,]+ parameters; cpu", plan[0]
    )
    rows = rows_in(shown)
    assert [row[1] for row in rows] == ["1", "2", "3"] and "Quantization is on from epoch 3" in after
    assert "\x1b[" not in shown and "left" not in shown
    records = [json.loads(line) for line in (Path(cfg.work_dir) / "log.jsonl").read_text().splitlines()]
    for row, val in zip(rows, [r for r in records if r["mode"] == "val"], strict=True):
        train = [r for r in records if r["mode"] == "train" and r["epoch"] == val["epoch"]]
        weights = [after["iter"] - before for after, before in zip(train, [0, *(r["iter"] for r in train)])]
        for number, name in ((3, "loss"), (4, "top-1")):
            mean = sum(weight * r[name] for weight, r in zip(weights, train)) / sum(weights)
            assert float(row[number]) == pytest.approx(mean, abs=0.006)
        assert [float(row[n]) for n in (5, 6, 7)] == pytest.approx([val["loss"], val["top-1"], val["top-5"]], abs=0.006)
    marked = {int(row[1]) for row in rows if row[8]}
    best = [r["top-1"] for r in records if r["mode"] == "val"]
    assert marked == ({1, 2, 3} if best[1] > best[0] else {1, 3}), "the phases are apart"


def test_the_log_file_has_the_lines_and_the_dumps(make_config: Any, capsys: Any) -> None:
    cfg = make_config(total_epochs=1, quant_transformer=QUANT)
    train_classifier(cfg)
    shown, text = capsys.readouterr().out, log_text(cfg.work_dir)
    for line in (
        "Environment:",
        "Config:",
        "Quantization plan",
        "Seed: 3",
        "Parameters:",
        "Epoch [1][5/12]",
        "Epoch(val) [1]",
    ):
        assert line in text and line not in shown, line
    assert not rows_in(text) and "TinyNet: LSQ" not in text


@pytest.mark.parametrize("way", ["--verbose", "log_level=DEBUG"])
def test_the_lines_on_request(write_config: Any, capsys: Any, way: str) -> None:
    arguments = [way] if way.startswith("--") else ["--options", way]
    assert main(["train", str(write_config(total_epochs=1)), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "lbitcls - INFO - Epoch [1][5/12]\tlr: " in shown and "Environment:" in shown and "Config:" in shown
    assert "  epoch    loss" in shown


def test_a_quiet_run_stays_quiet(make_config: Any, capsys: Any) -> None:
    train_classifier(make_config(total_epochs=1, log_level="WARNING"))
    shown = capsys.readouterr().out
    assert "TinyNet: " not in shown and "1/1" not in shown and "float top-1" in shown


def test_warnings_and_a_users_own_lines_show(tmp_path: Path, capsys: Any) -> None:
    logger = setup_logger("INFO", tmp_path / "x.log")
    logger.info("mine")
    logger.warning("careful", extra=DETAIL)
    logger.warning("look")
    logger.info("row", extra=DISPLAY)
    assert capsys.readouterr().out == "mine\nWARNING: look\nrow\n"
    lines = [line.rpartition(" - ")[2] for line in (tmp_path / "x.log").read_text().splitlines()]
    assert lines == ["mine", "careful", "look"]


def test_a_resumed_run_goes_on_with_its_rows(make_config: Any, capsys: Any) -> None:
    train_classifier(make_config(total_epochs=1))
    first = rows_in(capsys.readouterr().out)
    train_classifier(make_config(total_epochs=3), resume=True)
    shown = capsys.readouterr().out
    assert [row[1] for row in first] == ["1"] and [row[1] for row in rows_in(shown)] == ["2", "3"]
    assert "Resuming from" in shown


@pytest.mark.parametrize("columns", [80, *(pytest.param(n, marks=pytest.mark.slow) for n in (48, 200))])
def test_a_terminal_has_a_bar_and_lines_that_fit(write_config: Any, columns: int) -> None:
    code, shown, errors = on_terminal(ROOT / "tools" / "train.py", write_config(total_epochs=2), columns=columns)
    lines = plain(shown).splitlines()
    assert code == 0 and errors == ""
    assert any(re.search(r"epoch 2/2 .*12/12 +0:00:0\d left", line) for line in lines)
    assert any(re.match(r" +epoch +.*val top-1", line) for line in lines)
    assert any(re.match(r" +2/2 +\d+\.\d", line) for line in lines)
    assert "Epoch [" not in shown and "Config:" not in shown
    table = next(i for i, line in enumerate(lines) if line.startswith("Result"))
    assert max(map(len, lines[:table])) <= columns


def test_records_and_display_read_one_estimate() -> None:
    clock = SimpleNamespace(remaining=lambda runner: 21.0)
    hook = LogHook()
    hook.clock = clock  # type: ignore[assignment]
    runner: Any = SimpleNamespace(find=lambda kind: hook if kind is LogHook else None)
    assert seconds_left(runner) == 21.0


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True), (2, False), (None, True)])
def test_top_5_of_five_classes_is_left_out(classes: int | None, shown: bool) -> None:
    runner: Any = SimpleNamespace(
        inner_iter=0, epoch=0, max_epochs=2, phase="float", find=lambda kind: None, module=SimpleNamespace()
    )
    if classes is not None:
        runner.module.num_classes = classes
    table = EpochRows()
    table.before_epoch(runner)
    table.on_record(runner, {"mode": "val", "epoch": 1, "iter": 1, "loss": 1.0, "top-1": 50.0, "top-5": 100.0})
    runner.epoch = 1
    assert ("val top-5" in table.after_epoch(runner).cells) is shown


def test_what_does_not_fit_is_left_out_from_the_right() -> None:
    cells = dict.fromkeys(("epoch", "loss", "top-1", "val loss", "val top-1", "val precision", "lr", "time"), "1.0")
    row = Row(cells, best=True)
    everything = columns_of([row], True)
    assert everything[-4:] == ["val precision", "lr", "time", ""]
    for width in range(40, 120):
        names = columns_of([row], True, width)
        assert line_width(names) <= width and {"epoch", "val top-1", ""} <= set(names)
        assert len(header(names)) <= width and len(row_line(names, row)) <= width
        assert row_line(names, row).endswith("best")
    assert seconds_text(1.24) == "1.2 s" and seconds_text(100) == "0:01:40"


def test_what_is_quantized_in_words(delivered: Delivered) -> None:
    from lbitcls.models import build_classifier
    from lbitcls.quant import build_mtransformer
    from lbitcls.utils.config import Config

    cfg = Config.fromfile(delivered.config)
    model = build_classifier(cfg.model)
    assert describe_quantization(model) == "float"
    build_mtransformer(cfg.quant_transformer)(model)
    assert describe_quantization(model) == "LSQ W4A4 (2 layers LSQ W8A8), 8 of 8 layers quantized"


def test_other_commands_do_not_print_the_plan(delivered: Delivered, tmp_path: Path, capsys: Any) -> None:
    config, checkpoint = str(delivered.config), str(delivered.checkpoint)
    assert main(["test", config, checkpoint]) == 0
    assert main(["export", config, checkpoint, "--out", str(tmp_path / "model.onnx")]) == 0
    assert main(["visualize", "errors", config, checkpoint, "--out", str(tmp_path / "errors.png")]) == 0
    shown = capsys.readouterr().out
    assert "Quantization plan" not in shown and "layer1.0.conv1" not in shown and "top-1" in shown
    assert main(["plan", config]) == 0
    assert "layer1.0.conv1" in capsys.readouterr().out


class Closed(io.StringIO):
    """A pipe whose reader left, at a write or at a flush."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def write(self, text: str) -> int:
        if self.at == "write":
            raise BrokenPipeError(32, "Broken pipe")
        return len(text)

    def flush(self) -> None:
        if self.at == "flush":
            raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("at", ["write", "flush"])
def test_a_closed_pipe_ends_a_command_without_a_word(
    delivered: Delivered, monkeypatch: pytest.MonkeyPatch, capsys: Any, at: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed(at))
        assert main(["plan", str(delivered.config)]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_head_ends_a_command_and_a_run_goes_on(delivered: Delivered, make_config: Any, tmp_path: Path) -> None:
    cfg = make_config(total_epochs=2)
    cfg.dump(tmp_path / "tiny.py")
    for arguments, code, said in (
        ((ROOT / "tools" / "show_plan.py", delivered.config), 141, ""),
        ((ROOT / "tools" / "train.py", tmp_path / "tiny.py"), 0, "standard output cannot be written: Broken pipe"),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(**command(*arguments), stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        errors = done.stderr
        assert done.returncode == code, errors
        assert "Traceback" not in errors and "Exception" not in errors and len(errors.splitlines()) <= 1
        assert errors.startswith(said)
    assert (Path(cfg.work_dir) / "summary.json").exists()


def test_hooks_of_the_display_are_silent_on_other_ranks(make_config: Any, monkeypatch: Any, capsys: Any) -> None:
    from lbitcls.tracking import notebook, terminal

    for module, hook in ((terminal, terminal.TerminalHook()), (notebook, notebook.NotebookHook())):
        monkeypatch.setattr(module, "is_main", lambda: False)
        runner: Any = SimpleNamespace(
            inner_iter=0, epoch=0, max_epochs=1, phase="float", loader=range(3), find=lambda kind: None
        )
        events: Hook = hook
        events.before_run(runner)
        events.before_epoch(runner)
        events.after_iter(runner)
        events.after_epoch(runner)
        events.after_run(runner)
    assert capsys.readouterr().out == ""

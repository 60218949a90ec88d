"""Runs side by side: what the table tells of complete, stopped, running and damaged runs, in every form."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import shutil
import socket
import statistics
from pathlib import Path
from typing import Any

import pytest

from lbitcls.apis import compare_runs, train_classifier
from lbitcls.commands.main import main
from lbitcls.tracking.run_reading import RunRow, read_row
from lbitcls.tracking.run_table import MEASURED, RunTable
from lbitcls.utils.config import Config
from lbitcls.utils.errors import ConfigError, DataError

LSQ = dict(
    quant_transformer=dict(
        type="ModelTransformer", quan_policy=dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    ),
    calibration=dict(epoch=1, num_batches=1),
)
RUNS: dict[str, dict[str, Any]] = {
    "lsq/seed1": dict(LSQ, seed=1),
    "lsq/seed2": dict(LSQ, seed=2),
    "warmer": dict(LSQ, seed=1, optimizer=dict(type="SGD", lr=0.2)),
    "plain": dict(seed=1, total_epochs=1),
}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_sections: dict[str, Any]
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A folder of four short runs, and the summary of each."""
    folder = tmp_path_factory.mktemp("runs")
    summaries = {}
    for name, sections in RUNS.items():
        cfg = Config({**copy.deepcopy(tiny_sections), "log_level": "ERROR", "work_dir": str(folder / name), **sections})
        summaries[name] = train_classifier(cfg)
    return folder, summaries


def test_the_rows_are_the_runs_results(runs: Any) -> None:
    folder, summaries = runs
    table = compare_runs(folder)
    rows = {Path(row.path).relative_to(folder).as_posix(): row for row in table}
    assert rows.keys() == RUNS.keys()
    for name, summary in summaries.items():
        row = rows[name]
        assert row.complete and row.seed == RUNS[name]["seed"]
        assert row.float_top1 == summary["float"]["top1"]
        assert row.size_kib == summary["model_size"]["quantized_kib"]
        assert row.minutes == summary["seconds"] / 60 > 0
        if name == "plain":
            assert (row.method, row.bits, row.quantized_top1, row.gap) == ("float", "float", None, None)
            continue
        assert (row.method, row.bits) == ("LSQ", "W4A4")
        assert row.quantized_top1 == summary["quantized"]["top1"] and row.epoch == summary["quantized"]["epoch"]
        assert row.gap == pytest.approx(row.quantized_top1 - row.float_top1)


def test_only_runs_that_differ_in_the_seed_are_grouped(runs: Any) -> None:
    table = compare_runs([runs[0] / "plain", runs[0] / "warmer", runs[0] / "lsq"])
    assert [(group.name, group.n) for group in table.groups] == [("plain", 1), ("warmer", 1), ("lsq", 2)]
    group = table.groups[-1]
    values = [row.quantized_top1 for row in table.rows[-2:]]
    assert group.mean["quantized_top1"] == statistics.fmean(values)
    assert group.deviation["quantized_top1"] == statistics.stdev(values)
    assert group.mean["exported_top1"] is None and table.groups[0].deviation["float_top1"] is None
    assert f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}" in table.to_text()
    again = compare_runs([runs[0] / "lsq/seed1", runs[0] / "lsq/seed1/log.jsonl"])
    assert [group.n for group in again.groups] == [1]  # one seed, twice


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lsq_4w4f_seed1", "lsq_4w4f_seed22"], "lsq_4w4f"),
        (["dsq-s1", "dsq-s3"], "dsq"),
        (["lsq/1", "lsq/2"], "lsq"),
        (["a_10", "a_11"], "a"),
        (["classes1", "classes2"], "classes"),
        (["a", "b"], "study"),
        (["b"], "b"),
    ],
)
def test_the_name_of_a_group(names: list[str], expected: str) -> None:
    rows = [
        RunRow(name=name, path=f"study/{name}", state="complete", seed=seed, recipe="{}")
        for seed, name in enumerate(names)
    ]
    assert RunTable(rows).groups[0].name == expected


def test_every_form_has_the_same_values(runs: Any) -> None:
    table = compare_runs(runs[0])
    records = list(csv.DictReader(io.StringIO(table.to_csv())))
    content = json.loads(table.to_json())
    assert len(records) == len(content["runs"]) == len(table) == 4 and len(content["seeds"]) == 3
    for row, record, entry in zip(table, records, content["runs"], strict=True):
        assert record["name"] == entry["name"] == row.name and "recipe" not in entry
        for name in MEASURED:
            value = getattr(row, name)
            assert record[name] == ("" if value is None else str(value)) and entry[name] == value
    assert [record["n"] for record in records if "lsq" in record["path"]] == ["2", "2"]
    head, rule, *lines = table.to_markdown().splitlines()
    assert head.startswith("| run | method | bits | float | quantized | gap |") and rule.count("|") == head.count("|")
    assert all(line.count("|") == head.count("|") for line in lines[:4])
    html = table._repr_html_()
    assert html.count("<table>") == 2 and all(f"<td>{row.name}</td>" in html for row in table)


def test_a_stopped_a_running_and_an_older_run(runs: Any, tmp_path: Path) -> None:
    whole, work = runs[0] / "lsq/seed1", tmp_path / "work"
    shutil.copytree(whole, work)
    summary = json.loads((work / "summary.json").read_text())
    for key in ("quantization", "seed", "epochs", "seconds"):
        del summary[key]
    (work / "summary.json").write_text(json.dumps(summary))
    older, expected = read_row(work), read_row(whole)
    assert older.complete and 0 < older.minutes < expected.minutes
    for name in ("method", "bits", "seed", "float_top1", "quantized_top1", "epoch", "size_kib"):
        assert getattr(older, name) == getattr(expected, name), name
    (work / "summary.json").unlink()
    records = (work / "log.jsonl").read_text().splitlines(keepends=True)
    first = [line for line in records if json.loads(line)["epoch"] == 1]
    (work / "log.jsonl").write_text("".join(first) + records[-1][:20])
    row = read_row(work)
    assert row.state == "stopped, epoch 1 of 2" and (row.method, row.bits, row.epoch) == ("LSQ", "W4A4", 1)
    assert row.float_top1 == expected.float_top1 and row.quantized_top1 is None and row.minutes > 0
    note = {"host": socket.gethostname(), "pid": os.getpid(), "started": "now"}
    (work / ".run.json").write_text(json.dumps(note))
    assert read_row(work).state == "running, epoch 1 of 2"
    assert RunTable([row, expected]).groups[0].n == 1  # what is not complete counts for no mean


def test_a_run_that_went_on_is_not_complete(runs: Any, tmp_path: Path) -> None:
    """The summary in its folder is of its first part."""
    work = tmp_path / "work"
    shutil.copytree(runs[0] / "plain", work)
    record = json.loads((work / "log.jsonl").read_text().splitlines()[0])
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps({**record, "epoch": 2}) + "\n")
    assert read_row(work).state == "stopped, epoch 2 of 1"


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_damaged_there_is_a_row(seed: int, runs: Any, tmp_path: Path) -> None:
    """Files are removed, cut, emptied, replaced by other JSON or by bytes."""
    draw = random.Random(seed)
    work = tmp_path / "work"
    shutil.copytree(runs[0] / "lsq/seed1", work, ignore=shutil.ignore_patterns("*.png", "epoch_*"))
    (work / "20260101_000000.log").touch()
    for path in sorted(work.iterdir()):
        content = path.read_bytes()
        kinds = [b"", b"[1, 2]", b'{"float": 3, "quantized": [], "model_size": null}', draw.randbytes(99)]
        damage = draw.choice(["keep", "remove", "cut", "replace"])
        if damage == "remove" and path.suffix != ".log":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(content[: draw.randrange(len(content) + 1)])
        elif damage == "replace":
            path.write_bytes(draw.choice(kinds))
    table = compare_runs(tmp_path)
    assert len(table) == 1 and table.rows[0].name == "work"
    for form in (table.to_text, table.to_csv, table.to_json, table.to_markdown, table._repr_html_):
        assert "work" in form()


def test_analyze_prints_and_writes_the_table(
    runs: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    table = compare_runs(runs[0])
    for form, text in (("csv", table.to_csv()), ("json", table.to_json()), ("markdown", table.to_markdown())):
        assert main(["analyze", str(runs[0]), "--format", form]) == 0
        assert capsys.readouterr().out == text
    assert not list(tmp_path.iterdir())
    assert main(["analyze", str(runs[0]), "--out", "table.md"]) == 0
    assert Path("table.md").read_text() == table.to_markdown() and not Path("curves.png").exists()
    capsys.readouterr()
    assert main(["analyze", str(runs[0])]) == 0
    said = capsys.readouterr().out
    assert said.startswith(table.to_text()) and "time per iteration" in said and Path("curves.png").exists()


def test_a_run_without_a_record_has_a_row_and_no_curve(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "20260101_000000.log").touch()
    assert main(["analyze", "early"]) == 0
    assert "early  stopped, no epoch" in capsys.readouterr().out and not Path("curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["WORK", "--format", "csv", "--out", "x.png"], 2, "--format csv does not suit --out x.png"),
        (["WORK", "--format", "csv", "--out", "x.md"], 2, "--format csv does not suit --out x.md"),
        (["WORK", "--out", "x.txt"], 2, "--out must name a file *.png"),
        (["WORK", "--names", "a"], 2, "--names gives 1 names for 4 runs"),
        (["EMPTY"], 1, "is no run, and no run is below it; expected a work directory, which has a log.jsonl"),
        (["WORK/plain/summary.json"], 1, "contains no records of a run"),
        (["WORK/lsq/sead1"], 1, "Did you mean 'seed1'"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, runs: Any, tmp_path: Path, capsys: Any) -> None:
    words = [word.replace("WORK", str(runs[0])).replace("EMPTY", str(tmp_path)) for word in arguments]
    assert main(["analyze", *words]) == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_names_are_checked_in_python_too(runs: Any, tmp_path: Path) -> None:
    assert [row.name for row in compare_runs(runs[0] / "lsq", names=["a", "b"])] == ["a", "b"]
    with pytest.raises(ConfigError, match="--names gives 1 names for 2 runs"):
        compare_runs(runs[0] / "lsq", names=["a"])
    with pytest.raises(DataError, match="there is no run"):
        compare_runs([tmp_path / "none"])

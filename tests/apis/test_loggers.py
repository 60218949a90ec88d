"""Runs logged to a table, MLflow and Weights & Biases: the values of log.jsonl, resumed, and the same run without."""

from __future__ import annotations

import csv
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.apis import train_classifier
from lbitcls.tracking.loggers import tracker
from lbitcls.utils import Config
from lbitcls.utils.errors import ConfigError, DependencyError

Values = dict[tuple[str, int], float]


def log_config(*hooks: dict[str, Any]) -> dict[str, Any]:
    return dict(interval=5, hooks=list(hooks), pictures=False)


def records(cfg: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(cfg.work_dir) / "log.jsonl").read_text().splitlines()]


def expected(cfg: Config) -> Values:
    """The numbers of log.jsonl by name and iteration, 12 to an epoch."""
    found = {}
    for record in records(cfg):
        step = 12 * record["epoch"] if record["mode"] == "val" else 12 * (record["epoch"] - 1) + record["iter"]
        found |= {(name, step): value for name, value in tracker.numbers(record["mode"], record).items()}
    return found


def stop_and_resume(cfg: Config) -> None:
    """A run that ends without a word in its second epoch, and is resumed from the end of its first."""
    from tiny_parts import Ended

    cfg.custom_hooks = [dict(type="EndAt", event="after_iter", at=18)]
    with pytest.raises(Ended):
        train_classifier(cfg)
    cfg.custom_hooks = []
    train_classifier(cfg, resume=True)


# A table.


def rows(cfg: Config) -> list[dict[str, str]]:
    with (Path(cfg.work_dir) / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_the_records_of_a_run_that_was_resumed(make_config: Any) -> None:
    cfg = make_config(
        log_config=log_config(dict(type="CsvLoggerHook")), evaluation=dict(metric=["accuracy", "confusion"])
    )
    stop_and_resume(cfg)
    found, wanted = rows(cfg), records(cfg)
    assert len(found) == len(wanted) == 8 and list(found[0])[:3] == ["mode", "epoch", "iter"]
    for row, record in zip(found, wanted, strict=True):
        told = {name: value if name == "mode" else json.loads(value) for name, value in row.items() if value}
        assert told == record


def test_another_run_in_the_folder_gets_its_own_table(make_config: Any) -> None:
    cfg = make_config(log_config=log_config(dict(type="CsvLoggerHook")), total_epochs=1)
    for _ in range(2):
        train_classifier(cfg)
    folder = Path(cfg.work_dir)
    assert len(rows(cfg)) == 4 and (folder / "earlier_1" / "log.csv").is_file()


# MLflow, on a store in files.


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    yield f"file://{tmp_path / 'mlruns'}"


def mlflow_runs(store: str, name: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    return list(client.search_runs([client.get_experiment_by_name(name).experiment_id]))


def test_mlflow_has_the_values_of_the_log_in_one_run(store: str, make_config: Any) -> None:
    from mlflow import MlflowClient

    hook = dict(type="MlflowLoggerHook", tracking_uri=store, exp_name="digits", tags=dict(team="a"))
    cfg = make_config(log_config=log_config(hook))
    stop_and_resume(cfg)
    (run,) = mlflow_runs(store, "digits")
    client = MlflowClient(tracking_uri=store)
    assert json.loads((Path(cfg.work_dir) / "trackers.json").read_text()) == {"mlflow": run.info.run_id}
    history = [point for name in run.data.metrics for point in client.get_metric_history(run.info.run_id, name)]
    found = {(point.key, point.step): point.value for point in sorted(history, key=lambda point: point.timestamp)}
    assert found == pytest.approx(expected(cfg))
    assert (run.info.status, run.info.run_name, run.data.tags["team"]) == ("FINISHED", "work", "a")
    assert run.data.params["lr"] == "0.1" and run.data.params["method"] == "float"
    config = Path(run.info.artifact_uri.removeprefix("file://"), "config.py")
    assert Config.fromstring(config.read_text())["total_epochs"] == 2


def test_mlflow_tells_runs_and_their_ends_apart(store: str, make_config: Any) -> None:
    from tiny_parts import Ended

    hook = dict(type="MlflowLoggerHook", tracking_uri=store)
    cfg = make_config(log_config=log_config(hook), total_epochs=1)
    train_classifier(cfg)
    cfg.custom_hooks = [dict(type="EndAt", event="after_iter", at=7)]
    with pytest.raises(Ended):
        train_classifier(cfg)
    assert sorted(run.info.status for run in mlflow_runs(store, "Default")) == ["FAILED", "FINISHED"]


def test_a_store_that_cannot_be_used_is_an_error_at_the_start(store: str, make_config: Any) -> None:
    cfg = make_config(log_config=log_config(dict(type="MlflowLoggerHook", tracking_uri="nowhere://x")))
    with pytest.raises(ConfigError, match=r"MlflowLoggerHook\(tracking_uri='nowhere://x'.*MLflow cannot use it"):
        train_classifier(cfg)
    assert not (Path(cfg.work_dir) / "log.jsonl").exists()


def test_a_store_that_fails_later_ends_no_run(store: str, make_config: Any, monkeypatch: Any, capsys: Any) -> None:
    from lbitcls.tracking.loggers.mlflow_logger import MlflowLoggerHook

    def fail(*args: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(MlflowLoggerHook, "send", fail)
    cfg = make_config(log_config=log_config(dict(type="MlflowLoggerHook", tracking_uri=store)), total_epochs=1)
    train_classifier(cfg)
    assert capsys.readouterr().out.count("MLflow: No longer sending records") == 1
    assert len(records(cfg)) == 4


# Weights & Biases, offline.


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of an offline run's file, which is a log as LevelDB writes it, in blocks of 32 KiB."""
    data, at, record = file.read_bytes(), 7, b""  # behind a header
    while at < len(data):
        left = 2**15 - at % 2**15
        if left < 7:  # the rest of a block is empty
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def wandb_values(file: Path) -> Values:
    """The history that an offline run's file contains."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: Values = {}
    for data in wandb_records(file):
        record = Record()
        record.ParseFromString(data)
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        step = record.history.step.num or row.get("_step")
        found |= {(name, step): value for name, value in row.items() if not name.startswith("_")}
    return found


def test_wandb_has_the_values_of_the_log_under_one_id(offline: None, make_config: Any) -> None:
    cfg = make_config(log_config=log_config(dict(type="WandbLoggerHook", init_kwargs=dict(project="digits"))))
    stop_and_resume(cfg)
    name = json.loads((Path(cfg.work_dir) / "trackers.json").read_text())["wandb"]
    files = sorted((Path(cfg.work_dir) / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == len(list((Path(cfg.work_dir) / "wandb").glob("offline-run-*"))) == 2, "a part for each process"
    found: Values = {}
    for file in files:
        found |= wandb_values(file)
    assert found == pytest.approx(expected(cfg))


def test_without_a_login_nothing_is_trained(offline: None, make_config: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    cfg = make_config(log_config=log_config(dict(type="WandbLoggerHook", init_kwargs=dict(mode="online"))))
    with pytest.raises(ConfigError, match="not logged in to Weights & Biases .*wandb login, or set"):
        train_classifier(cfg)


# All of them.


def test_a_run_is_the_same_with_and_without(store: str, offline: None, make_config: Any) -> None:
    plain, followed = (make_config(work, workers=0) for work in ("plain", "followed"))
    mlflow = dict(type="MlflowLoggerHook", tracking_uri=store)
    followed.log_config = log_config(dict(type="CsvLoggerHook"), mlflow, dict(type="WandbLoggerHook"))
    for cfg in (plain, followed):
        train_classifier(cfg)
    one, other = (torch.load(Path(cfg.work_dir) / "latest.pth", weights_only=True) for cfg in (plain, followed))
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


@pytest.mark.parametrize(("name", "package"), [("MlflowLoggerHook", "mlflow"), ("WandbLoggerHook", "wandb")])
def test_a_missing_package_is_named_before_training(
    name: str, package: str, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    cfg = make_config(log_config=log_config(dict(type=name)))
    message = rf"{name} needs the package {package}.*pip install 'lbitcls\[{package}\]'"
    with pytest.raises(DependencyError, match=message):
        train_classifier(cfg)
    assert not (Path(cfg.work_dir) / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(exp_name=3), "MlflowLoggerHook: exp_name must be a text or None; got 3"),
        (dict(tags=["a"]), "MlflowLoggerHook: tags must be a dict"),
        (dict(tags={1: "a"}), "MlflowLoggerHook: the keys of tags must be names; got 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    from lbitcls.registry import HOOKS

    with pytest.raises(ConfigError, match=message):
        HOOKS.build(dict(type="MlflowLoggerHook", **options))


def test_a_run_has_one_tracker_of_a_kind(store: str, make_config: Any) -> None:
    hook = dict(type="MlflowLoggerHook", tracking_uri=store)
    with pytest.raises(ConfigError, match="log_config.hooks has two MlflowLoggerHook"):
        train_classifier(make_config(log_config=log_config(hook, hook)))

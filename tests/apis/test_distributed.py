"""Several processes on a CPU: gloo, started by tools/dist_train.sh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.apis import test_classifier as classify
from lbitcls.commands.main import main
from lbitcls.utils.config import Config

ROOT = Path(__file__).resolve().parent.parent.parent
QUANT = dict(
    quant_transformer=dict(
        type="mTransformerV2", quan_policy=dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    ),
    calibration=dict(epoch=1, num_batches=2),
)


def launch(config: Path, *arguments: Any, processes: int = 2) -> subprocess.Popen[str]:
    """`tools/dist_train.sh CONFIG NUM_PROCS …`, its output in pipes."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    call = [str(ROOT / "tools" / "dist_train.sh"), str(config), str(processes), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(call, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str], timeout: float = 150) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output, errors


def last_record(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "log.jsonl").read_text().splitlines()[-1])


def test_two_processes_train_as_one_model(make_config: Any, tmp_path: Path) -> None:
    """Delayed quantization and EMA on two processes: equal weights, and a validation that counts each image once."""
    hooks = [dict(type="Fingerprint")]
    cfg = make_config(custom_hooks=hooks, sycbn=True, dist_params=dict(backend="nccl"), ema=dict(decay=0.9), **QUANT)
    cfg.data.samples_per_gpu = 64
    cfg.log_config.hooks.append(dict(type="TensorboardLoggerHook"))
    cfg.dump(tmp_path / "tiny.py")
    code, output, errors = finish(launch(tmp_path / "tiny.py"))
    assert code == 0, errors[-3000:]
    first, second = (torch.load(f"{cfg.work_dir}/rank_{rank}.pt") for rank in (0, 1))
    assert first == second
    assert output.count("Using gloo: the backend NCCL of dist_params needs GPUs") == 1
    (log,) = Path(cfg.work_dir).glob("*.log")
    assert log.read_text().count("TensorBoard: Inspected 3 layers and 16 images") == 1
    assert len(list(Path(cfg.work_dir).glob("tf_logs/*"))) == 1
    assert output.count("  2/2 ") == 1
    summary = json.loads((Path(cfg.work_dir) / "summary.json").read_text())
    assert set(summary) >= {"float", "quantized"}
    alone = classify(Config(cfg._cfg_dict), f"{cfg.work_dir}/latest.pth")
    together = last_record(cfg.work_dir)
    assert together["images"] == 2 * 1437
    assert alone["top-1"] == together["top-1"]
    assert alone["loss"] == pytest.approx(together["loss"], rel=1e-5)


def test_infinite_loss_of_one_rank_stops_all(make_config: Any, tmp_path: Path) -> None:
    hooks = [dict(type="Poison", at=15, only_rank=1)]
    cfg = make_config(custom_hooks=hooks, total_epochs=20)
    cfg.data.samples_per_gpu = 64
    cfg.dump(tmp_path / "tiny.py")
    code, _, errors = finish(launch(tmp_path / "tiny.py"), timeout=90)
    assert code != 0
    assert errors.count("TrainingError: the loss is not finite in epoch 2, iteration 4") == 1
    weights = torch.load(f"{cfg.work_dir}/latest.pth", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_error_of_one_rank_ends_the_others(make_config: Any, tmp_path: Path) -> None:
    cfg = make_config(custom_hooks=[dict(type="Fail", at=3, only_rank=1)], total_epochs=50)
    cfg.dump(tmp_path / "tiny.py")
    code, _, errors = finish(launch(tmp_path / "tiny.py"), timeout=90)
    assert code != 0
    assert "process 1: DataError: image 7 cannot be read" in errors


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves(make_config: Any, tmp_path: Path) -> None:
    whole, stopped = make_config("whole", total_epochs=40), make_config("stopped", total_epochs=40)
    stopped.dump(tmp_path / "tiny.py")
    process = launch(tmp_path / "tiny.py")
    deadline = time.monotonic() + 60
    while not (Path(stopped.work_dir) / "epoch_3.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, _, errors = finish(process)
    assert code != 0 and "use --resume" in errors
    assert (Path(stopped.work_dir) / "interrupted.pth").exists()
    assert finish(launch(tmp_path / "tiny.py", "--resume"))[0] == 0
    whole.dump(tmp_path / "whole.py")
    assert finish(launch(tmp_path / "whole.py"))[0] == 0
    a, b = (torch.load(f"{cfg.work_dir}/latest.pth", weights_only=True) for cfg in (whole, stopped))
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])


def test_launcher_without_processes(write_config: Any, capsys: Any) -> None:
    assert main(["train", str(write_config()), "--launcher", "pytorch"]) == 2
    said = capsys.readouterr().err
    assert "dist_train.sh" in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", [(), ("config.py",), ("config.py", "two")])
def test_script_says_its_usage(arguments: tuple[str, ...]) -> None:
    call = [str(ROOT / "tools" / "dist_train.sh"), *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage" in done.stderr


@pytest.mark.slow
def test_unfreezing_and_the_feature_cache_on_two_processes(make_config: Any, tmp_path: Path) -> None:
    """Weights are equal on both at the end, and those of a run without the cache."""
    states = []
    for name, cache in (("cached", True), ("plain", False)):
        hooks = [dict(type="UnfreezeHook", epoch=2, layers=["backbone.*2"], lr_mult=0.5), dict(type="Fingerprint")]
        options = {"model.backbone.frozen": True, "log_config.pictures": False}
        cfg = make_config(name, options=options, custom_hooks=hooks, feature_cache=cache, total_epochs=3)
        cfg.data.samples_per_gpu = 64
        cfg.dump(tmp_path / f"{name}.py")
        code, output, errors = finish(launch(tmp_path / f"{name}.py"))
        assert code == 0, errors[-3000:]
        assert "Training backbone.conv2, backbone.bn2 as well" in output
        first, second = (torch.load(f"{cfg.work_dir}/rank_{rank}.pt") for rank in (0, 1))
        assert {n: v for n, v in first.items() if "running" not in n} == {
            n: v for n, v in second.items() if "running" not in n
        }
        states.append(torch.load(f"{cfg.work_dir}/latest.pth", weights_only=True)["state_dict"])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())

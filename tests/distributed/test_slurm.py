"""`tools/slurm_train.sh`, and two machines; stand-ins play srun, scontrol and the machines."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import free_port  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
SRUN = """#!/usr/bin/env bash
# Stands for srun: notes its options, and starts the tasks on this machine with the variables that Slurm sets.
while [ "${1#-}" != "$1" ]; do
    case $1 in
        --ntasks) tasks=$2 ;;
        --kill-on-bad-exit=1) options+=" $1"; shift; continue ;;
    esac
    options+=" $1 $2"
    shift 2
done
echo "$options" > "$NOTES"
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=$tasks SLURM_STEP_NODELIST='node[1-2]' "$@" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
# Stands for scontrol: the first of the nodes is this machine.
[ "$*" = 'show hostnames node[1-2]' ] && printf '127.0.0.1\\nnode2\\n'
"""


def environment(**variables: str) -> dict[str, str]:
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "apis"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **variables}


def written(cfg: dict[str, Any]) -> str:
    from lbitcls.utils.config import Config

    path = f"{cfg['work_dir']}.py"
    Config({**cfg, "custom_imports": dict(imports=["scenes"])}).dump(path)
    return path


def weights(cfg: dict[str, Any]) -> dict[str, torch.Tensor]:
    content = torch.load(f"{cfg['work_dir']}/latest.pth", weights_only=True)
    assert content["meta"]["world_size"] == 2
    return dict(content["state_dict"])


def test_slurm_starts_the_tasks(make_run: Any, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    cfg = make_run("run", 2)
    variables = dict(GPUS_PER_NODE="1", CPUS_PER_TASK="2", SRUN_ARGS="--time 10 --mem 4G", PORT=str(free_port()))
    done = subprocess.run(
        [ROOT / "tools" / "slurm_train.sh", "debug", "digits", written(cfg), "2", "--seed", "4"],
        env=environment(**variables, PATH=f"{programs}:{os.environ['PATH']}", NOTES=str(tmp_path / "notes")),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    given = "--partition debug --job-name digits --ntasks 2 --cpus-per-task 2 --gres gpu:1 --ntasks-per-node 1"
    assert (tmp_path / "notes").read_text().split() == f"{given} --kill-on-bad-exit=1 --time 10 --mem 4G".split()
    assert weights(cfg)


@pytest.mark.parametrize("arguments", [(), ("debug", "digits", "config.py"), ("debug", "digits", "config.py", "two")])
def test_slurm_script_says_its_usage(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([ROOT / "tools" / "slurm_train.sh", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage" in done.stderr


@pytest.fixture
def machines() -> Any:
    """Two machines: prefixes of their commands, and the first one's address; network namespaces, or this machine."""
    name = f"lb{os.getpid() % 10000}"
    commands = [
        f"ip netns add {name}a",
        f"ip netns add {name}b",
        f"ip link add {name}c netns {name}a type veth peer name {name}d netns {name}b",
        *(f"ip -n {name}{side} link set lo up" for side in "ab"),
        *(f"ip -n {name}{s} addr add 10.99.0.{n}/24 dev {name}{d}" for s, n, d in (("a", 1, "c"), ("b", 2, "d"))),
        *(f"ip -n {name}{side} link set {name}{device} up" for side, device in ("ac", "bd")),
    ]
    apart = shutil.which("ip") is not None and all(
        subprocess.run(command.split(), capture_output=True, check=False).returncode == 0 for command in commands
    )
    try:
        if apart:
            yield [f"ip netns exec {name}{side}".split() for side in "ab"], "10.99.0.1", [f"{name}c", f"{name}d"]
        else:
            yield [[], []], "127.0.0.1", ["lo", "lo"]
    finally:
        if shutil.which("ip"):
            for side in "ab":
                subprocess.run(["ip", "netns", "del", f"{name}{side}"], capture_output=True, check=False)


@pytest.mark.slow
def test_two_machines_train_as_two_processes_of_one(make_run: Any, machines: Any, record_property: Any) -> None:
    prefixes, address, devices = machines
    print("two network namespaces" if prefixes[0] else "one machine, by loopback")
    record_property("machines", "namespaces" if prefixes[0] else "loopback")
    states = []
    for name, nodes in (("one", 1), ("two", 2)):
        cfg = make_run(name, 2)
        call = [str(ROOT / "tools" / "dist_train.sh"), written(cfg), str(2 // nodes)]
        port = str(free_port())
        jobs = [
            subprocess.Popen(
                [*(prefix if nodes > 1 else []), *call],
                env=environment(
                    **dict(NNODES="2", NODE_RANK=str(node), MASTER_ADDR=address, PORT=port, GLOO_SOCKET_IFNAME=device)
                    if nodes > 1
                    else {}
                ),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for node, (prefix, device) in enumerate(zip(prefixes[:nodes], devices))
        ]
        try:
            told = [job.communicate(timeout=150)[0] for job in jobs]
        finally:
            for job in jobs:
                job.kill()
        assert [job.returncode for job in jobs] == [0] * nodes, "\n".join(told)
        states.append(weights(cfg))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())

"""Every method under DDP, on two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lbitcls.quant.kernels import machine
from lbitcls.quant.methods import METHODS
from lbitcls.registry import QUANT_LAYERS


@pytest.mark.parametrize("kind", ["plain", pytest.param("integer", marks=pytest.mark.slow)])
def test_two_processes_keep_equal_parameters(kind: str) -> None:
    if kind == "integer" and machine.find_obstacle():
        pytest.skip("this machine multiplies no 8-bit integers")
    QUANT_LAYERS.names()
    worker = Path(__file__).with_name("ddp_worker.py")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*run, kind], capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" equal")} == set(METHODS)

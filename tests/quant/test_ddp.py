"""Every method under DDP, on two processes."""

import os
import subprocess
import sys
from pathlib import Path

from lbitcls.quant.methods import METHODS
from lbitcls.registry import QUANT_LAYERS


def test_two_processes_keep_equal_parameters() -> None:
    QUANT_LAYERS.names()
    worker = Path(__file__).with_name("ddp_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" equal")} == set(METHODS)

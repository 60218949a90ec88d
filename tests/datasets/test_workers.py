"""Worker processes and signals: a job's signals do not end them, their parent's do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

# A loader with two workers; the process prints their ids, waits for a line, reads on, and exits with the loader alive.
PROGRAM = """
import multiprocessing, signal, sys
import numpy as np, torch
from lbitcls.datasets import build_dataloader
from lbitcls.datasets.base import MemoryDataset

signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: None)
images = torch.zeros(4000, 3, 8, 8, dtype=torch.uint8)
loader = build_dataloader(MemoryDataset(images, np.zeros(4000), [dict(type="v2.Identity")]), 4, 2)
batches = loader.iterate(0)
next(batches), next(batches)  # one from each worker: both are set up
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
sys.stdin.readline()
print(sum(1 for _ in batches), flush=True)
if {cycle}:
    loader.itself = loader
    del loader, batches
"""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no sigwaitinfo on this system")
@pytest.mark.parametrize("cycle", [False, True])
def test_signals_to_the_job_leave_the_workers_to_their_parent(cycle: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{cycle}", str(cycle))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        for number in (signal.SIGTERM, signal.SIGINT):
            os.killpg(process.pid, number)
        time.sleep(0.2)
        assert all(map(_alive, workers))
        printed, errors = process.communicate("\n", timeout=60)
        assert (printed, errors, process.returncode) == ("998\n", "", 0)
        assert not any(map(_alive, workers))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_lost_main_process_causes_no_traceback() -> None:
    """What multiprocessing's thread reports in a worker whose main process has ended in the middle of a transfer."""
    program = (
        "import sys\nfrom lbitcls.datasets.workers import outlive_signals\noutlive_signals(0)\n"
        "for error in (ConnectionResetError('peer'), EOFError(), ValueError('shown')):\n"
        "    sys.excepthook(type(error), error, None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "ValueError: shown\n"

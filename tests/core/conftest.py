"""Two processes of a distributed run, without a launcher, which would be a third."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_ranks() -> Callable[[Path], None]:
    """`run_ranks(script)`: runs it on two ranks to their end, and raises with what they wrote if one fails."""

    def run(script: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        processes = [
            subprocess.Popen(
                [sys.executable, str(script)],
                env={**os.environ, **common, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        try:
            said = [process.communicate(timeout=60)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert all(process.returncode == 0 for process in processes), "\n".join(text[-3000:] for text in said)

    return run

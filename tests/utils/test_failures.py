"""The machine's failures become messages that say what to do; other errors stay unchanged."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lbitcls.utils import save_checkpoint
from lbitcls.utils.errors import DataError
from lbitcls.utils.failures import explain


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a.pth"),
            "a.pth cannot be written or read: the disk is full",
        ),
        (OSError(errno.EDQUOT, "Quota"), "a file cannot be written or read: the disk quota is exhausted"),
        (OSError(errno.EFBIG, "File too large"), r"ulimit -f"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out"),
        (MemoryError(), r"memory ran out\. Lower data\.samples_per_gpu"),
        (
            RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
            r"\(pid 71\) was killed by the system \(Killed\)",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), r"\(pid 7, 8\) ended unexpectedly"),
        (
            RuntimeError(
                "DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit."
            ),
            "--shm-size",
        ),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"),
            "--shm",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "the GPU's memory ran out"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
            "memory",
        ),
    ],
)
def test_what_the_machine_says(error: BaseException, message: str) -> None:
    told = explain(error)
    assert told is not None and told.exit_code == 71
    with pytest.raises(type(told), match=message):
        raise told


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "no"), PermissionError(13, "no"), RuntimeError("shape"), KeyError(1)]
)
def test_other_errors_stay(error: BaseException) -> None:
    assert explain(error) is None
    told = DataError("an image")
    assert explain(told) is told


LIMITED = f"""
import resource, sys, torch
from lbitcls.utils import save_checkpoint
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_checkpoint(torch.nn.Linear(200, 200), sys.argv[1])
    except OSError as error:
        print(error.errno == {errno.EFBIG}, error.filename == sys.argv[1])
"""


def test_a_checkpoint_that_does_not_fit_is_an_os_error_and_the_old_one_stays(tmp_path: Path) -> None:
    """The limit may be hit early, late, or when the end of the archive is written; torch reports "unexpected pos"."""
    path = tmp_path / "a.pth"
    save_checkpoint(torch.nn.Linear(200, 200), path)
    before = path.read_bytes()
    limits = map(str, (1, 50_000, len(before) - 300))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), *limits], capture_output=True, text=True, check=False
    )
    assert done.stdout == "True True\n" * 3, done.stderr
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]

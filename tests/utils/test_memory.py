"""Memory that a process keeps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")

FAULTS = """
import resource, sys
import numpy as np
from lbitcls.utils.memory import keep_freed_memory

print(keep_freed_memory())
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(2**21), np.ones(2**23)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("of_user", [False, True])
def test_blocks_are_taken_again_without_new_pages(of_user: bool) -> None:
    more = {"MALLOC_MMAP_THRESHOLD_": "1000000"} if of_user else {}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    assert kept == str(not of_user)
    assert int(faults) > 20 if of_user else int(faults) < 20

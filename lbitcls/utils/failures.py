"""Failures beyond a command's control: a full disk, a limit, too little memory, a killed process."""

from __future__ import annotations

import errno
import re

from lbitcls.utils.errors import LbitclsError, ResourceError

_STORAGE = {
    errno.ENOSPC: "the disk is full. Free some space, or choose a folder elsewhere",
    errno.EDQUOT: "the disk quota is exhausted. Free some space, or choose a folder elsewhere",
    errno.EFBIG: "the limit on file sizes is reached. Raise it (ulimit -f), or choose a folder elsewhere",
    errno.EROFS: "the file system is read-only, possibly after a disk error. Choose a folder elsewhere",
    errno.EIO: "the disk reports an error. Choose a folder on another disk",
    errno.ESTALE: "the network file system has lost the file. Remount it, or choose a folder elsewhere",
}
_KILLED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ?([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)"
)
_SHARED = re.compile(r"out of shared memory|unable to \w+ .{0,40}(shared memory|/torch_)", re.DOTALL)
_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory|Cannot allocate memory", re.I)


def explain(error: BaseException) -> LbitclsError | None:
    """Return an error that says what happened and what to do: `error` itself if it does, None if nothing is known."""
    if isinstance(error, LbitclsError):
        return error
    if isinstance(error, OSError):
        return _explain_storage(error)
    if isinstance(error, MemoryError):
        return _out_of_memory("memory", str(error))
    if not isinstance(error, RuntimeError):
        return None
    cause = error.__cause__  # after a worker's death, torch raises from the error that its signal raised
    return (_explain_process(str(cause)) if isinstance(cause, RuntimeError) else None) or _explain_process(str(error))


def _explain_storage(error: OSError) -> ResourceError | None:
    if error.errno == errno.ENOMEM:
        return _out_of_memory("memory")
    reason = _STORAGE.get(error.errno or 0)
    if reason is None:
        return None
    where = f"{error.filename} cannot be written or read" if error.filename else "a file cannot be written or read"
    return ResourceError(f"{where}: {reason}.")


def _explain_process(text: str) -> ResourceError | None:
    shared = _SHARED.search(text)
    killed = _KILLED.search(text)
    if shared:
        return ResourceError(
            "the shared memory (/dev/shm), through which worker processes pass their batches, is full. Enlarge it "
            "(docker run --shm-size=8g), or lower data.workers_per_gpu or data.samples_per_gpu."
        )
    if killed:
        how = f"was killed by the system ({killed[2].strip()})" if killed[2] else "ended unexpectedly"
        return ResourceError(
            f"a process that reads data (pid {killed[1].strip()}) {how}, most likely because memory ran out. Lower "
            "data.workers_per_gpu or data.samples_per_gpu, or give the job more memory."
        )
    return _out_of_memory("the GPU's memory" if "CUDA" in text else "memory", text) if _MEMORY.search(text) else None


def _out_of_memory(what: str, text: str = "") -> ResourceError:
    found = text.partition("\n")[0].partition(". ")[0].rstrip(". ")
    told = f"{what} ran out ({found})" if found else f"{what} ran out"
    return ResourceError(f"{told}. Lower data.samples_per_gpu, or use a smaller model or smaller images.")

"""Commands that start at once: children forked from a process that has imported the package, and crews that run cases.

A child does what `python -m lbitcls.commands.main` does, in a session of its own, with its output in files. It is
faithful as long as this process has no threads and has used no autograd; `kills` compares one run with a command that
is started in the usual way.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing.util
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stress.verdicts import Result

Case = TypeVar("Case")
Found = TypeVar("Found")
PATIENCE = 600.0
"""Seconds after which a command that has not ended is a hang, also on a machine with much other work."""
_USED = (  # what a training imports on its way
    *("lbitcls.commands.main", "lbitcls.workflows.training", "lbitcls.workflows.testing"),
    *("lbitcls.workflows.exporting", "lbitcls.deploy.export.onnx", "lbitcls.tracking.tensorboard"),
    *("tensorboard.compat.proto.summary_pb2", "tensorboard.plugins.hparams.api_pb2", "torch.utils.tensorboard"),
    *("torch._dynamo", "torch.export", "torch._inductor", "torch.onnx._internal.exporter._core", "networkx"),
    *("torchvision.models", "onnxscript.rewriter", "onnxscript._framework_apis.torch_2_5"),
    *("onnx", "matplotlib.figure"),  # not ONNX Runtime and OpenVINO, which start threads
)


def warm() -> None:
    """Import, once, what commands import; a package that is not installed is left out.

    Raises:
        RuntimeError: A package has started a thread, which forked processes would lack.
    """
    for name in _USED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise RuntimeError(f"{threads} threads run before the first fork; set OMP_NUM_THREADS=1.")


@dataclass
class Child:
    """A command that runs.

    Attributes:
        pid: Process, the leader of its session.
        folder: Folder that it runs in; its output is in `stdout.txt` and `stderr.txt` there.
        began: `time.monotonic()` of its start.
    """

    pid: int
    folder: Path
    began: float
    _status: int | None = None

    def ended(self, seconds: float) -> bool:
        """Wait at most so long; return True if the process has ended."""
        if self._status is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                if select.select([descriptor], [], [], seconds)[0]:
                    self._status = os.waitpid(self.pid, 0)[1]
            finally:
                os.close(descriptor)
        return self._status is not None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process alone, unless it has ended."""
        if not self.ended(0):
            os.kill(self.pid, number)

    def code(self, seconds: float = PATIENCE) -> int | None:
        """Return the exit code, negative for a signal; None for a hang, which is ended."""
        if not self.ended(seconds):
            os.kill(self.pid, signal.SIGKILL)
            self.ended(seconds)
            return None
        return os.waitstatus_to_exitcode(self._status or 0)

    @property
    def errors(self) -> str:
        """Standard error of the command, as far as it is written."""
        return (self.folder / "stderr.txt").read_text("utf-8", "replace")

    @property
    def output(self) -> str:
        """Standard output of the command, as far as it is written."""
        return (self.folder / "stdout.txt").read_text("utf-8", "replace")


def begin(arguments: Sequence[str], folder: Path, prepare: Callable[[], object] = lambda: None) -> Child:
    """Start `lbitcls ARGUMENTS` in a folder.

    Args:
        arguments: Arguments of the command line.
        folder: Folder to run in.
        prepare: Function that the new process calls first.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run(arguments, folder, prepare)
    return Child(pid, folder, began)


def _run(arguments: Sequence[str], folder: Path, prepare: Callable[[], object]) -> None:
    """Run a command in this process, and end it as the interpreter does: threads first, then child processes."""
    code: Any = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in enumerate((os.devnull, "stdout.txt", "stderr.txt")):
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.argv = ["lbitcls", *arguments]
        prepare()
        from lbitcls.commands.main import main

        code = main(arguments)
        threading._shutdown()  # type: ignore[attr-defined]
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # a limit on file sizes
            sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)


def own_process(
    module: str, args: argparse.Namespace, preload: Callable[[Path], Path | None] = lambda folder: None
) -> list[Result]:
    """Run `module`, which calls `answer`, in a process of its own, without the threads of others; return its results.

    Args:
        module: Name of the module.
        args: Options of the command line: `scale`, `workers`, `seed`.
        preload: Function that returns a library to preload, made in the folder that it gets.
    """
    folder = Path(tempfile.mkdtemp(prefix="lbitcls-stress-"))
    root = Path(__file__).resolve().parents[2]
    paths = [str(root / "benchmarks"), str(root), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment["TMPDIR"] = str(folder)  # for what killed processes leave
    try:
        if library := preload(folder):
            environment["LD_PRELOAD"] = str(library)
        command = [sys.executable, "-m", module, folder, args.scale, args.workers, args.seed]
        subprocess.run(list(map(str, command)), env=environment, check=True)
        results: list[Result] = pickle.loads((folder / "results").read_bytes())
        if any(result.losses for result in results):
            print(f"The losses are in {folder}.", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return results


def answer(results_of: Callable[[Path, float, int, int], list[Result]]) -> None:
    """Be the process of `own_process`: call `results_of(folder, scale, workers, seed)`."""
    folder = Path(sys.argv[1])
    results = results_of(folder, float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    (folder / "results").write_bytes(pickle.dumps(results))


def spread(run: Callable[[Case], Found], cases: Sequence[Case], workers: int) -> Iterator[Found]:
    """Call `run` on each case in `workers` forked processes; yield the results as they come.

    Raises:
        RuntimeError: A process ended early; its traceback is on standard error.
    """
    queue, feed = os.pipe()
    os.write(feed, b"".join(number.to_bytes(2, "big") for number in range(len(cases))))
    os.close(feed)
    pipes = {pipe.fileno(): pipe for pipe in (_crew(run, cases, queue) for _ in range(min(workers, len(cases))))}
    os.close(queue)
    missing = len(cases)
    while pipes:
        for descriptor in select.select(list(pipes), [], [])[0]:
            try:
                found = pickle.load(pipes[descriptor])
            except EOFError:
                found = None
            if found is None:
                pipes.pop(descriptor).close()
            else:
                missing -= 1
                yield found[0]
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    if missing:
        raise RuntimeError(f"{missing} cases did not run.")


def _crew(run: Callable[[Case], Found], cases: Sequence[Case], queue: int) -> Any:
    """Start a process that runs cases whose numbers it takes from `queue`; return the pipe with the results."""
    sys.stdout.flush()
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        return open(read, "rb", buffering=0)
    try:
        os.close(read)
        with open(write, "wb") as pipe:
            while number := os.read(queue, 2):
                pickle.dump((run(cases[int.from_bytes(number, "big")]),), pipe)
                pipe.flush()
            pickle.dump(None, pipe)  # a process that a killed one left may hold the pipe open
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)

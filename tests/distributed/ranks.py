"""Ranks of a distributed run without a launcher: children of a fork server that has imported everything once.

A scene is a function of a module on `sys.path` (`scenes.py`): each rank calls it, and `play` returns the results.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

_CONTEXT = multiprocessing.get_context("forkserver")


@functools.cache
def _start_server() -> None:
    """Start the server, which looks for the scenes on `PYTHONPATH` alone (in Python 3.11 it ignores `sys.path`)."""
    _CONTEXT.set_forkserver_preload(["scenes"])
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(ROOT), before])
    try:
        forkserver.ensure_running()
    finally:
        os.environ["PYTHONPATH"] = before


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def play(scene: Callable[..., Any], ranks: int, *arguments: Any, seconds: float = 300) -> list[Any]:
    """Return each rank's result of `scene(*arguments)`; raise with the traceback of one that failed.

    Args:
        scene: Function of a module that children can import.
        ranks: Number of processes; with one, there is no process group.
        arguments: Plain objects.
        seconds: Time limit.
    """
    _start_server()
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    pipes, children = [], []
    for rank in range(ranks):
        ours, theirs = _CONTEXT.Pipe()
        environment = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        child = _CONTEXT.Process(target=_act, args=(theirs, environment, scene, arguments))
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    try:
        return _results(pipes, seconds)
    finally:
        for child in children:
            child.kill()
            child.join()


def _results(pipes: Sequence[Connection], seconds: float) -> list[Any]:
    answers = []
    for rank, pipe in enumerate(pipes):
        if not pipe.poll(seconds):
            raise AssertionError(f"rank {rank} of {len(pipes)} gave no result within {seconds} s")
        answers.append(pickle.loads(pipe.recv_bytes()))
    failed = [f"rank {rank}:\n{told}" for rank, (told, _) in enumerate(answers) if told]
    assert not failed, "\n".join(failed)
    return [result for _, result in answers]


def _act(pipe: Connection, environment: dict[str, str], scene: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    try:
        answer = pickle.dumps((None, scene(*arguments)))  # not `send`, which shares the memory of tensors
    except BaseException:
        answer = pickle.dumps((traceback.format_exc(), None))
    pipe.send_bytes(answer)

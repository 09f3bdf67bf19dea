"""A worker whose jobs do what a text tells them: `python -m tests.e2e.standin`.

Started by the daemon of `jobdaemon.py` in the place of the one that loads a model. The loop, the
session and the process are the real ones; only the table of jobs is another.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from libmem import Client
from libmem.abi.jobs import EmbedRequest, JobClass
from libmem.abi.wire import args_decoder
from memosd.worker.loop import Slices, Table
from memosd.worker.process import parser, work

_EVER_S = 3600.0


def _die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_once(mark: Path) -> None:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(_: str) -> None:
    time.sleep(_EVER_S)


def _burn(seconds: str) -> None:
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        pass


def _take_all_memory(_: str) -> None:
    bytearray(1 << 40)


def _raise(error: Exception) -> Callable[[str], None]:
    def act(_: str) -> None:
        raise error

    return act


_ACTS: Final[dict[str, Callable[[str], None]]] = {
    "die": _die,
    "die-once": lambda mark: _die_once(Path(mark)),
    "hang": _hang,
    "burn": _burn,
    "hog": _take_all_memory,
    "memory": _raise(MemoryError()),
    "torch-memory": _raise(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")),
    "value": _raise(ValueError("this text is bad")),
    "bug": _raise(KeyError("a surprise")),
}


def _job(body: bytes) -> Slices:
    request: EmbedRequest = args_decoder(EmbedRequest).decode(body)
    for text in request.texts:
        word, _, argument = text.partition(" ")
        if word == "large":
            return bytes(int(argument))
        if word == "slices":
            for _ in range(int(argument)):
                time.sleep(0.01)
                yield
        elif word in _ACTS:
            _ACTS[word](argument)
        yield
    niceness = os.getpriority(os.PRIO_PROCESS, 0)  # of this thread
    return f"{os.getpid()} {niceness} {' '.join(request.texts)}".encode()


def _table(options: argparse.Namespace, _client: Client) -> Table:
    if options.embedder == "broken":
        raise FileNotFoundError("no such model")
    if options.embedder == "exits":
        sys.exit(3)
    return {JobClass.QUERY: _job, JobClass.EMBED: _job}


if __name__ == "__main__":
    sys.exit(work(parser().parse_args(), _table))

"""Processes beside the benchmark's own: clients, peers, writers.

Owns their start and end. A body is a context manager that yields a function from an order to its
result; orders and results travel over a pipe. Invariant: a process that failed or died raises in
the benchmark, and none outlives its `Worker`.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from libmem.abi.errors import Errno, MemError

__all__ = ["Body", "Worker", "move_to_core", "on_core", "workers"]

Body = Callable[..., AbstractContextManager[Callable[[Any], Any]]]

# A forked child would share the sockets and threads of what the benchmark already opened.
_SPAWN: Final = multiprocessing.get_context("spawn")
_END_S: Final = 60.0


class Worker:
    """One process that carries out orders, one at a time. A context manager."""

    def __init__(self, body: Body, *args: object) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_run, args=(theirs, body, args), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, order: object) -> None:
        """Give an order and do not wait. To be followed by one `result`."""
        try:
            self._pipe.send(order)
        except BrokenPipeError:
            raise self._death() from None

    def result(self) -> Any:
        """The outcome of the oldest order not asked for yet; the first one says "ready".

        Errors: what the body raised; EIO when the process died.
        """
        try:
            outcome = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._death() from None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def ask(self, order: object) -> Any:
        """Give an order and wait for its result."""
        self.send(order)
        return self.result()

    def close(self) -> None:
        """Let the process end after its last order; kill it when it does not."""
        self._pipe.close()
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # nobody waits for what it may be in the middle of
            self._process.kill()
        self.close()

    def _death(self) -> MemError:
        self._process.join(_END_S)
        return MemError(Errno.EIO, "a process of the benchmark died", status=self._process.exitcode)


@contextmanager
def workers(body: Body, *each: tuple[object, ...]) -> Iterator[list[Worker]]:
    """One process for every tuple of arguments, all ready before the block begins."""
    with ExitStack() as stack:
        started = [stack.enter_context(Worker(body, *args)) for args in each]
        for worker in started:
            worker.result()
        yield started


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes started in the block run on that core, with all their threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def move_to_core(pid: int, core: int) -> None:
    """Have a process that runs already go on there, with all its threads."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def _run(pipe: Connection, body: Body, args: tuple[object, ...]) -> None:
    """The process: errors that have a meaning go to the benchmark, others end it loudly."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the benchmark's; it ends this one
    try:
        with body(*args) as carry_out:
            pipe.send("ready")
            while True:
                try:
                    order = pipe.recv()
                except EOFError:
                    return
                pipe.send(carry_out(order))
    except (MemError, OSError) as error:
        pipe.send(error)

"""Threads for slow work, and how their results come back to the kernel thread.

Work runs on a thread; its result is queued, the kernel thread is woken through an eventfd and
resolves the completion in `deliver`. Errors of the operating system are translated here, at the
boundary that meets them, so the kernel sees nothing but MemError.
"""

import errno as os_errno
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

from libmem.abi.errors import Errno, MemError
from memosd.kernel.wait import Completion

__all__ = ["IoPool", "Wakeup"]

T = TypeVar("T")

_ERRNOS: Final = {
    os_errno.ENOSPC: Errno.ENOSPC,
    os_errno.EDQUOT: Errno.ENOSPC,
    os_errno.ENOMEM: Errno.ENOMEM,
    os_errno.EMFILE: Errno.EMFILE,
    os_errno.ENFILE: Errno.EMFILE,
}


class Wakeup:
    """Finished work of any number of pools, and the descriptor that tells of it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._finished: deque[Callable[[], None]] = deque()

    def post(self, finish: Callable[[], None]) -> None:
        """From any thread: run `finish` on the kernel thread."""
        self._finished.append(finish)
        os.eventfd_write(self.fd, 1)

    def deliver(self) -> None:
        """On the kernel thread: run what was posted."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return
        while self._finished:
            self._finished.popleft()()

    def close(self) -> None:
        os.close(self.fd)


class IoPool:
    """The kernel's `Io` over a few threads. One thread keeps its work in order.

    A bare queue rather than concurrent.futures: every durable write passes here, and a Future
    with its locks costs four times as much as the hand-over itself.
    """

    def __init__(self, wakeup: Wakeup, threads: int, name: str) -> None:
        self._wakeup = wakeup
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._serve, name=f"{name}_{n}", daemon=True) for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            # An idle thread would keep what it worked on last: a view of freed memory, say.
            del work

    def run(self, work: Callable[..., T], *args: Any) -> Completion[T]:
        """Start `work(*args)`; the completion is resolved by `Wakeup.deliver`."""
        done: Completion[T] = Completion()
        self._queue.put(lambda: self._work(done, work, args))
        return done

    def _work(self, done: Completion[T], work: Callable[..., T], args: tuple[Any, ...]) -> None:
        try:
            value = work(*args)
        except BaseException as error:  # noqa: BLE001
            self._wakeup.post(partial(done.fail, _translated(error)))
        else:
            self._wakeup.post(lambda: done.resolve(value))

    def close(self) -> None:
        """Finish what was started and what waits, then end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()


def _translated(error: BaseException) -> BaseException:
    if not isinstance(error, OSError):
        return error
    return MemError(_ERRNOS.get(error.errno or 0, Errno.EIO), str(error))

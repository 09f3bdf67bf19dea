"""The supervisor: starts worker processes, reaps them, and says how each ended.

The kernel's `Workers`. Owns the processes; when one is wanted is the kernel's business. A worker is
reaped on the kernel thread, when its pidfd is readable in the server's loop and not before, so that
its process id is not used again while the kernel takes it for a member. Their messages go where the
daemon's go. None outlives the daemon: each asks for a signal at its parent's death.
"""

import errno as os_errno
import os
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from libmem.abi.errors import Errno, MemError

__all__ = ["Supervisor"]

_STDERR: Final = 2
_ERRNOS: Final = {
    os_errno.EAGAIN: Errno.EAGAIN,
    os_errno.ENOMEM: Errno.ENOMEM,
    os_errno.EMFILE: Errno.EMFILE,
    os_errno.ENFILE: Errno.EMFILE,
}


class Loop(Protocol):
    """What this asks of the server."""

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        """Run `action` on the kernel thread whenever the descriptor is readable."""
        ...

    def unwatch(self, fd: int) -> None: ...


class _Child(NamedTuple):
    process: "subprocess.Popen[bytes]"
    pidfd: int


class Supervisor:
    """All children."""

    def __init__(self, loop: Loop, command: Sequence[str]) -> None:
        """`command`: what a worker is; the daemon's process id is added to it."""
        self._loop = loop
        self._command = [*command, f"--parent={os.getpid()}"]
        self._children: dict[int, _Child] = {}
        self.on_end: Callable[[int, str], None] = _nobody_listens

    def start(self) -> int:
        """Errors: EAGAIN, ENOMEM, EMFILE, EIO."""
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        try:
            process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                process_group=0,  # what a terminal sends is for the daemon
            )
        except OSError as error:
            errno = _ERRNOS.get(error.errno or 0, Errno.EIO)
            raise MemError(errno, f"cannot start a worker: {error.strerror}") from None
        try:
            pidfd = os.pidfd_open(process.pid)
        except OSError as error:
            process.kill()
            process.wait()
            errno = _ERRNOS.get(error.errno or 0, Errno.EIO)
            raise MemError(errno, f"cannot watch a worker: {error.strerror}") from None
        self._children[process.pid] = _Child(process, pidfd)
        self._loop.watch(pidfd, partial(self._reap, process.pid))
        return process.pid

    def is_alive(self, pid: int) -> bool:
        child = self._children.get(pid)
        if child is None:
            return False
        ended = select.poll()
        ended.register(child.pidfd, select.POLLIN)
        return not ended.poll(0)

    def end(self, pid: int) -> None:
        self._signal(pid, signal.SIGTERM)

    def kill(self, pid: int) -> None:
        self._signal(pid, signal.SIGKILL)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        child = self._children.get(pid)
        if child is not None:
            # Popen.send_signal reaps a child that has ended; a zombie takes this in silence.
            signal.pidfd_send_signal(child.pidfd, number)

    def _reap(self, pid: int) -> None:
        child = self._children.pop(pid)
        self._loop.unwatch(child.pidfd)
        os.close(child.pidfd)
        self.on_end(pid, _how(child.process.wait()))

    def close(self) -> None:
        """Where the orderly end did not come to it: leave none behind."""
        for pid, child in list(self._children.items()):
            self.kill(pid)
            child.process.wait()
            os.close(child.pidfd)
        self._children.clear()


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"killed by signal {-status}"


def _nobody_listens(_pid: int, _how: str) -> None:
    """Until the kernel is made."""

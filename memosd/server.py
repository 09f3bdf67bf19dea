"""The server: one thread, one loop, between the two roads and the kernel.

    wait (epoll) -> finished I/O, fd road -> control road, until empty -> timers, group commit

Signals, the service manager and the orderly end are handled here as well.
"""

import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from libmem.abi.paths import CONTROL_SOCKET, FD_SOCKET
from libmem.abi.wire import FdTag
from memosd.controlroad import ControlRoad
from memosd.descriptors import Descriptors
from memosd.fdroad import FdRoad
from memosd.iopool import Wakeup
from memosd.kernel.kernel import Kernel
from memosd.kernel.session import Session
from memosd.kernel.wait import detach
from memosd.notify import Notifier

__all__ = ["Server"]

_log = structlog.get_logger("memosd.server")
_STOP_GRACE_NS: Final = 30_000_000_000


class Server:
    """Owns the roads and the loop; `Gate` for the kernel."""

    def __init__(self, runtime_dir: Path, mode: int, wakeup: Wakeup, share: Descriptors) -> None:
        self._wakeup = wakeup
        self._epoll = select.epoll()
        self._epoll.register(wakeup.fd, select.EPOLLIN)
        self._control_road = ControlRoad(runtime_dir / CONTROL_SOCKET, mode, self._epoll, share)
        self._fd_road = FdRoad(runtime_dir / FD_SOCKET, mode, self._epoll, share.strangers)
        self._watched: dict[int, Callable[[], None]] = {}
        self._is_stopping = False
        self._is_stopped = False
        self._notifier = Notifier()
        self.kernel: Kernel | None = None
        """Set by boot, once the kernel is made; it needs this server as its gate."""

    # -- the kernel's gate ---------------------------------------------------------------------

    def send_fds(self, session: Session, handle: int, fds: Sequence[int]) -> None:
        assert self.kernel is not None
        self._fd_road.send_fds(session, FdTag(handle, self.kernel.epoch), fds)

    def stop(self) -> None:
        """Begin an orderly end; safe from a signal handler."""
        self._wakeup.post(self._begin_stop)

    def _begin_stop(self) -> None:
        kernel = self.kernel
        if self._is_stopping or kernel is None:
            return
        self._is_stopping = True
        _log.info("stopping")
        self._notifier.send("STOPPING=1", "STATUS=writing back")
        kernel.parts.timers.after(_STOP_GRACE_NS, self._give_up)
        detach(kernel.stop()).on_done(self._finish_stop)

    def _finish_stop(self) -> None:
        self._is_stopped = True

    def _give_up(self) -> None:
        _log.error("could not stop in order", grace_s=_STOP_GRACE_NS // 10**9)
        self._is_stopped = True

    # -- who else has descriptors to wait for --------------------------------------------------

    def watch(self, fd: int, action: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Run `action` in the loop whenever the descriptor is readable, or what else is asked."""
        self._watched[fd] = action
        self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Before it is closed."""
        del self._watched[fd]
        self._epoll.unregister(fd)

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> None:
        """Announce READY, then serve until stopped."""
        kernel = self.kernel
        assert kernel is not None
        self._announce(kernel)
        control = self._control_road
        while not self._is_stopped:
            control.drain(kernel)
            delay_s = control.wait_s(kernel.turn())
            for fd, _ in self._epoll.poll(delay_s):
                if fd == control.fd:
                    control.woken()
                elif fd == control.connections.fd:
                    control.count_connections()
                elif fd == self._wakeup.fd:
                    self._wakeup.deliver()
                elif (action := self._watched.get(fd)) is not None:
                    action()
                else:
                    self._fd_road.serve(fd, kernel)
        self._fd_road.close(kernel)
        control.close()
        self._epoll.close()

    def _announce(self, kernel: Kernel) -> None:
        self._notifier.send("READY=1", f"MAINPID={os.getpid()}", self._status(kernel))
        period_ns = self._notifier.watchdog_period_ns()
        if period_ns is not None:
            kernel.parts.timers.every(
                period_ns, lambda: self._notifier.send("WATCHDOG=1", self._status(kernel))
            )
        _log.info("ready", epoch=kernel.epoch, cubes=kernel.parts.table.count())

    @staticmethod
    def _status(kernel: Kernel) -> str:
        cubes, sessions = kernel.parts.table.count(), len(kernel.sessions)
        return f"STATUS=serving {cubes} cubes to {sessions} sessions"

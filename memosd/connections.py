"""Who is connected to the control road, and whom to hang up on when there are too many.

libzmq accepts connections on a thread of its own, and ends the process with an assertion when no
descriptor is left to accept with. So they are counted here, from the events that it reports.
Invariant: as soon as events are read, no more than `limit` connections are kept. In between
libzmq cannot run ahead: it stops at the event that `_UNREAD_EVENTS` others wait before, and
`descriptors.py` sets that many descriptors aside. Called by the control road; the choice of whom
to hang up on is the fd road's as well.
"""

import select
import socket
import struct
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Final

import zmq

__all__ = ["UNREAD_EVENTS", "Connections", "credentials_of", "greediest"]

UNREAD_EVENTS: Final = 1001
"""libzmq's own high-water mark of 1000 on its side, and one on this side."""
_UCRED: Final = struct.Struct("=iII")
_EVENT: Final = struct.Struct("=HI")
_ACCEPTED: Final = int(zmq.EVENT_ACCEPTED)
_DISCONNECTED: Final = int(zmq.EVENT_DISCONNECTED)


class Connections:
    """The connections of one ROUTER that is not bound yet."""

    def __init__(
        self, router: "zmq.Socket[bytes]", path: Path, limit: int, epoll: select.epoll
    ) -> None:
        self._path = str(path)
        self._limit = limit
        self._uids: dict[int, int] = {}
        """The user behind each connection's descriptor, oldest first; without those hung up on."""
        router.monitor("inproc://connections", _ACCEPTED | _DISCONNECTED)
        self._events = router.context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.RCVHWM, 1)
        self._events.connect("inproc://connections")
        self.fd = int(self._events.fd)
        self.read_events()  # ZeroMQ rings only for those who once found nothing
        epoll.register(self.fd, select.EPOLLIN)

    def __len__(self) -> int:
        return len(self._uids)

    def read_events(self) -> bool:
        """Count who came and who went; True when there are too many now.

        To be called when `fd` is readable: it is edge-triggered, so all events are read.
        """
        while True:
            try:
                event, fd = _EVENT.unpack(self._events.recv_multipart(zmq.DONTWAIT)[0])
            except zmq.Again:
                return len(self._uids) > self._limit
            if event == _ACCEPTED:
                self._count(fd)
            else:
                self._uids.pop(fd, None)

    def _count(self, fd: int) -> None:
        connection = self._borrow(fd)
        if connection is None:
            return
        try:
            self._uids[fd] = credentials_of(connection)[1]
        except OSError:
            return  # closed meanwhile, as may happen at any time
        finally:
            connection.detach()

    def shrink(self, in_use: Set[int]) -> None:
        """Hang up until the limit holds, but on none of the descriptors `in_use`."""
        others = {fd: uid for fd, uid in self._uids.items() if fd not in in_use}
        for fd in greediest(others, len(self._uids) - self._limit):
            self.hang_up(fd)

    def hang_up(self, fd: int) -> None:
        """End one connection; libzmq finds it closed, and closes the descriptor."""
        if self._uids.pop(fd, None) is None:
            return
        connection = self._borrow(fd)
        if connection is None:
            return
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other side was faster
        finally:
            connection.detach()

    def _borrow(self, fd: int) -> socket.socket | None:
        """libzmq's descriptor as a socket, to be detached; None where it is another's by now."""
        try:
            connection = socket.socket(fileno=fd)
        except OSError:
            return None
        try:
            if connection.family == socket.AF_UNIX and connection.getsockname() == self._path:
                return connection
        except OSError:
            pass
        connection.detach()
        return None

    def close(self) -> None:
        self._events.close(linger=0)


def greediest(uids: Mapping[int, int], count: int) -> list[int]:
    """The descriptors to hang up on, at most `count`: each time the oldest of whoever has most.

    `uids`: the user behind each descriptor, oldest first. Turning the newest away instead would
    let silent connections shut everybody out.
    """
    by_user: dict[int, list[int]] = {}
    for fd, uid in reversed(list(uids.items())):
        by_user.setdefault(uid, []).append(fd)
    return [max(by_user.values(), key=len).pop() for _ in range(min(count, len(uids)))]


def credentials_of(connection: socket.socket) -> tuple[int, int, int]:
    """pid, uid, gid of the process that connected, by the operating system's word."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(credentials)
    return pid, uid, gid

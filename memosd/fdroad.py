"""The fd road: descriptors for clients, and the exact sign that one of them is gone.

A client connects, shows the token that `hello` gave it and gets an acknowledgement; from then on
descriptors go out over this connection, tagged with their handle. Who connects is the operating
system's word (SO_PEERCRED, SO_PEERGROUPS). When the connection closes, for whatever reason, the
session ends, and the other way round. Nothing here blocks: a client that does not read gets
EAGAIN on its own call.
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from libmem.abi.errors import Errno, MemError
from libmem.abi.wire import FdTag, encode
from memosd.connections import credentials_of, greediest
from memosd.kernel.access import Identity
from memosd.kernel.kernel import Kernel
from memosd.kernel.session import Session

__all__ = ["FdRoad", "check_runtime_dir"]

_SO_PEERGROUPS: Final = 59
_TOKEN_MAX_BYTES: Final = 64
_GROUPS_MAX: Final = 256
"""As many as Python's getsockopt can return; of who is in more, only the primary one counts."""
_RETRY_NS: Final = 100_000_000
"""Without a free descriptor, connections wait in the backlog for as long before the next try."""


class FdRoad:
    """The listening socket and all connections."""

    def __init__(self, path: Path, mode: int, epoll: select.epoll, strangers: int) -> None:
        """`strangers`: connections without a session; beyond them the greediest user's go."""
        self._path = path
        self._epoll = epoll
        self._strangers = strangers
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        path.chmod(mode)
        self._listener.listen(128)
        self._connections: dict[int, socket.socket] = {}
        self._unbound: dict[int, int] = {}
        """The user of each connection that showed no token yet, oldest first."""
        self._sessions: dict[int, Session] = {}
        self._sockets: dict[int, socket.socket] = {}
        """By session number."""
        epoll.register(self._listener.fileno(), select.EPOLLIN)

    def serve(self, fd: int, kernel: Kernel) -> bool:
        """Handle readiness of one descriptor; False when it is none of this road's."""
        if fd == self._listener.fileno():
            self._accept(kernel)
        elif fd in self._connections:
            self._read(fd, kernel)
        else:
            return False
        return True

    def _accept(self, kernel: Kernel) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # Out of descriptors. The listener would stay readable, and the loop never wait.
            self._epoll.unregister(self._listener.fileno())
            kernel.parts.timers.after(_RETRY_NS, self._listen_again)
            return
        for fd in greediest(self._unbound, len(self._unbound) + 1 - self._strangers):
            self._close(fd, kernel)
        connection.setblocking(False)
        fd = connection.fileno()
        self._connections[fd] = connection
        self._unbound[fd] = credentials_of(connection)[1]
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:  # not closed by the orderly end
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def _read(self, fd: int, kernel: Kernel) -> None:
        try:
            token = self._connections[fd].recv(_TOKEN_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            token = b""
        if not token or fd in self._sessions:
            # End of file, or a bound client that writes: this road carries nothing from clients.
            self._close(fd, kernel)
            return
        self._bind(fd, token, kernel)

    def _bind(self, fd: int, token: bytes, kernel: Kernel) -> None:
        connection = self._connections[fd]
        session = kernel.bind(token, _identity_of(connection))
        if session is None:
            self._close(fd, kernel)
            return
        del self._unbound[fd]
        self._sessions[fd] = session
        self._sockets[session.number] = connection
        session.hang_up = lambda: self._drop(session, kernel)
        try:
            connection.send(encode(FdTag(0, kernel.epoch)))
        except OSError:
            self._close(fd, kernel)

    def send_fds(self, session: Session, tag: FdTag, fds: Sequence[int]) -> None:
        """Errors: EAGAIN when the client does not read, ECANCELED when it is gone."""
        connection = self._sockets.get(session.number)
        if connection is None:
            raise MemError(Errno.ECANCELED, "the client is gone")
        try:
            socket.send_fds(connection, [encode(tag)], fds)
        except BlockingIOError:
            raise MemError(Errno.EAGAIN, "the client does not read its fd socket") from None
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                raise MemError(Errno.EAGAIN, "too many descriptors are on their way") from None
            raise MemError(Errno.ECANCELED, "the client is gone") from None

    def _drop(self, session: Session, kernel: Kernel) -> None:
        """The session ended, maybe because its connection did."""
        connection = self._sockets.get(session.number)
        if connection is not None:
            self._close(connection.fileno(), kernel)

    def _close(self, fd: int, kernel: Kernel) -> None:
        connection = self._connections.pop(fd, None)
        if connection is None:
            return
        self._epoll.unregister(fd)
        connection.close()
        self._unbound.pop(fd, None)
        session = self._sessions.pop(fd, None)
        if session is not None:
            del self._sockets[session.number]
            kernel.gone(session)

    def close(self, kernel: Kernel) -> None:
        for fd in list(self._connections):
            self._close(fd, kernel)
        self._listener.close()
        self._path.unlink(missing_ok=True)


def _identity_of(connection: socket.socket) -> Identity:
    pid, uid, gid = credentials_of(connection)
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:
        raw = b""  # too many, or before Linux 4.13: only the primary group counts
    groups = frozenset(struct.unpack(f"{len(raw) // 4}I", raw))
    return Identity(uid=uid, gid=gid, pid=pid, groups=groups)


def check_runtime_dir(directory: Path, socket_mode: int) -> None:
    """Make the directory of the sockets, and refuse one where others could replace them.

    Errors: EPERM, EACCES, EIO.
    """
    is_private = not socket_mode & 0o077
    try:
        directory.mkdir(mode=0o700 if is_private else 0o755, parents=True, exist_ok=True)
    except OSError as error:
        errno = Errno.EACCES if isinstance(error, PermissionError) else Errno.EIO
        raise MemError(errno, f"cannot make the runtime directory: {error}") from None
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise MemError(
            Errno.EPERM, f"{directory} can be changed by other users; sockets there are not safe"
        )

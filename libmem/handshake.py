"""How a link is opened: greet on the control road, prove it on the fd road.

    1. connect to fd.sock: quick to fail when no daemon is there, and its end is the daemon's end
    2. check who listens there (SO_PEERCRED)
    3. `hello` on control.sock, with epoch 0; the reply brings the epoch and a token
    4. send the token over fd.sock; the acknowledgement binds the session

The daemon compares the kernel-verified uid and pid of both roads before it acknowledges, so that
checking the peer of one authenticates the other too.

Blocking; the asyncio client runs it on a thread. Called by the clients alone.
"""

import os
import socket
import struct
import time
from pathlib import Path
from typing import Final

from libmem.abi.calls import Hello
from libmem.abi.errors import Errno, MemError
from libmem.abi.paths import CONTROL_SOCKET, FD_SOCKET, user_runtime_dir
from libmem.abi.syscalls import BY_REQUEST
from libmem.abi.wire import decode_result
from libmem.link import Link, new_dealer, new_road

__all__ = ["open_link"]

_TIMEVAL: Final = struct.Struct("@ll")
_UCRED: Final = struct.Struct("@iII")


def open_link(runtime_dir: Path, hello: Hello, deadline: float) -> Link:
    """One attempt to open a session at the daemon of `runtime_dir`.

    Units:  deadline is on time.monotonic().
    Errors: ECONNREFUSED (nobody there, or gone while greeting), ETIMEDOUT, EACCES, EPERM (an
            impostor), ENAMETOOLONG, and what `hello` lists.
    """
    road = _connect_road(runtime_dir / FD_SOCKET, deadline)
    try:
        _check_peer(road, runtime_dir)
        link = Link(new_dealer(str(runtime_dir / CONTROL_SOCKET)), road)
    except BaseException:
        road.close()
        raise
    try:
        _greet(link, hello, deadline)
    except MemError as error:
        link.close()
        if error.errno is Errno.ECONNRESET:
            raise _refused(runtime_dir, "it went away while greeting") from None
        raise
    except BaseException:
        link.close()
        raise
    return link


def _greet(link: Link, hello: Hello, deadline: float) -> None:
    reply = link.round_trip(hello, deadline)
    link.hello = decode_result(BY_REQUEST[Hello], reply.errno, reply.body)
    link.ledger.epoch = reply.epoch
    try:
        link.road.send(link.hello.token)
    except OSError:
        raise MemError(Errno.ECONNRESET, "the daemon closed its fd road") from None
    link.await_acknowledgement(deadline)


def _connect_road(path: Path, deadline: float) -> socket.socket:
    road = new_road()
    try:
        # A full backlog makes connect() wait; without this it would do so for ever.
        road.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(deadline))
        road.connect(os.fspath(path))
    except BaseException as error:
        road.close()
        if isinstance(error, OSError):
            raise _connect_error(path, error) from None
        raise
    return road


def _timeval(deadline: float) -> bytes:
    seconds = max(deadline - time.monotonic(), 0.001)  # zero would mean no limit
    return _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000) or 1)


def _connect_error(path: Path, error: OSError) -> MemError:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
        return _refused(path.parent, "no memosd listens there")
    if isinstance(error, PermissionError):
        return MemError(Errno.EACCES, f"not allowed to connect to {path}")
    if isinstance(error, BlockingIOError):
        return MemError(Errno.ETIMEDOUT, f"too many clients wait at {path}")
    if error.errno is None:  # Python's own check of the length
        return MemError(Errno.ENAMETOOLONG, f"{path}: {error}")
    return MemError(Errno.EIO, f"cannot connect to {path}: {error}")


def _refused(runtime_dir: Path, why: str) -> MemError:
    text = f"no daemon answers in {runtime_dir}: {why}"
    return MemError(Errno.ECONNREFUSED, text, runtime_dir=str(runtime_dir))


def _check_peer(road: socket.socket, runtime_dir: Path) -> None:
    """Errors: EPERM when the listener is neither root nor who may run a daemon there."""
    _, uid, _ = _UCRED.unpack(road.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in _trusted_uids(runtime_dir):
        raise MemError(
            Errno.EPERM,
            f"user {uid} answers in {runtime_dir}, but may not run a daemon there",
            uid=uid,
        )


def _trusted_uids(runtime_dir: Path) -> set[int]:
    # Anybody can take a user's default directory below /tmp first, and would then own it: there
    # the owner proves nothing. Elsewhere the directory was named, or belongs to the system.
    if runtime_dir == user_runtime_dir():
        return {0, os.getuid()}
    return {0, runtime_dir.stat().st_uid}

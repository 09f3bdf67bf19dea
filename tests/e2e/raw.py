"""A peer that speaks to the sockets without libmem, well or badly."""

import os
import socket
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from libmem.abi.calls import Call, Hello, HelloReply
from libmem.abi.errors import Errno
from libmem.abi.limits import ABI_VERSION
from libmem.abi.paths import CONTROL_SOCKET, FD_SOCKET
from libmem.abi.structs import Value
from libmem.abi.syscalls import BY_REQUEST
from libmem.abi.wire import FdTag, Reply, args_decoder, decode_reply, decode_result, encode
from tests.e2e.daemon import PATIENCE_S

__all__ = ["RawPeer", "is_hung_up", "raw_road"]

R = TypeVar("R", bound=Value)


def raw_road(runtime_dir: Path) -> socket.socket:
    """A connection to the fd road that has shown no token."""
    road = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        road.connect(str(runtime_dir / FD_SOCKET))  # waits while the backlog is full
    except BaseException:
        road.close()
        raise
    road.settimeout(PATIENCE_S)
    return road


def is_hung_up(road: socket.socket) -> bool:
    """Wait for what comes next; True when it is the end."""
    try:
        return road.recv(64) == b""
    except ConnectionResetError:
        return True


class RawPeer:
    """A DEALER on the control road, and what it takes to bind a session. A context manager."""

    def __init__(self, runtime_dir: Path, **options: int | bytes) -> None:
        """`options`: of the DEALER, to be set before it connects, by their lower-case names."""
        self._runtime_dir = runtime_dir
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.dealer = self._context.socket(zmq.DEALER)
        self.dealer.linger = 0
        self.dealer.rcvtimeo = self.dealer.sndtimeo = int(PATIENCE_S * 1000)
        for option, value in options.items():
            self.dealer.set(zmq.SocketOption[option.upper()], value)
        self.dealer.connect(f"ipc://{runtime_dir / CONTROL_SOCKET}")
        self.epoch = 0
        self.road: socket.socket | None = None
        self._seq = 0
        self._token = b""
        self._is_bound = False

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up on both roads; a session that was never bound would outlive them for seconds."""
        if self._token and not self._is_bound:
            self.show(self._token)
        if self.road is not None:
            self.road.close()
        self.dealer.close()
        self._context.term()

    def hello(self) -> HelloReply:
        """Open a session, unbound."""
        reply = self.ask(Hello(client="raw"))
        self.epoch = reply.epoch
        terms: HelloReply = decode_result(BY_REQUEST[Hello], reply.errno, reply.body)
        self._token, self._is_bound = terms.token, False
        return terms

    def show(self, token: bytes) -> bool:
        """Connect to the fd road and show a token; was it acknowledged?"""
        if self.road is not None:
            self.road.close()
        self.road = raw_road(self._runtime_dir)
        self.road.send(token)
        is_acknowledged = not is_hung_up(self.road)
        self._is_bound |= is_acknowledged
        return is_acknowledged

    def bind(self) -> HelloReply:
        """Open a session and bind it."""
        terms = self.hello()
        assert self.show(terms.token)
        return terms

    def post(self, request: Call[Any], **envelope: int) -> int:
        """Send a request without waiting; the fields of `envelope` replace the right ones."""
        self._seq += 1
        fields = {"abi": ABI_VERSION, "seq": self._seq, "epoch": self.epoch}
        fields["number"] = BY_REQUEST[type(request)].number
        fields.update(envelope)
        self.dealer.send(encode((*fields.values(), request)))
        return fields["seq"]

    def ask(self, request: Call[Any], **envelope: int) -> Reply:
        """Send a request; its reply."""
        seq = self.post(request, **envelope)
        while (reply := decode_reply(self.dealer.recv())).seq != seq:
            pass
        return reply

    def call(self, request: Call[R]) -> R:
        """The result of a request. Errors: the daemon's."""
        reply = self.ask(request)
        result: R = decode_result(BY_REQUEST[type(request)], reply.errno, reply.body)
        return result

    def errno_of(self, request: Call[Any], **envelope: int) -> Errno | int:
        """How the daemon answers a request; 0 is well."""
        errno = self.ask(request, **envelope).errno
        return Errno(errno) if errno else 0

    def raw(self, *frames: bytes) -> Reply:
        """Send frames as they are; the reply to them."""
        self.dealer.send_multipart(frames)
        return decode_reply(self.dealer.recv())

    def numbered(self, number: int, args: object) -> Reply:
        """Call a syscall by number with any arguments."""
        self._seq += 1
        frame = msgspec.msgpack.encode((ABI_VERSION, self._seq, self.epoch, number, args))
        return self.raw(frame)

    def take_descriptor(self) -> tuple[FdTag, int]:
        """The next descriptor on the fd road."""
        assert self.road is not None
        message, fds, _, _ = socket.recv_fds(self.road, 64, 1)
        tag: FdTag = args_decoder(FdTag).decode(message)
        (fd,) = fds
        os.set_inheritable(fd, False)
        return tag, fd

"""A client that answers from a table, and a memctl that runs with it in this process.

Used by the tests of this folder that need no daemon.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import pytest

from libmem import Client
from libmem.abi.calls import Call, HelloReply, Info, Shutdown, WriteReply
from libmem.abi.errors import MemError
from libmem.abi.structs import (
    Behaviour,
    CubeType,
    Descriptive,
    Durability,
    Event,
    Governance,
    Stat,
)
from memosd.tools.memctl.__main__ import main
from memosd.tools.memctl.command import Connect, Settings

Answers = Mapping[Any, Any]
"""A request type, and what it is answered: a value, an error, or a function of the request."""


class FakeFill:
    """Writable memory that remembers what was sealed."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = bytearray(size_bytes)
        self.buffer = memoryview(self._memory)
        self.result: WriteReply | None = None
        self.sealed: bytes | None = None

    def __enter__(self) -> "FakeFill":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.sealed = bytes(self._memory)
            self.result = WriteReply(id=b"\x01" * 16, version=7, digest=b"\x02" * 16)


class FakeClient:
    """Answers each request type with a value, an error or what a function makes of the request."""

    def __init__(self, answers: Answers) -> None:
        self.answers = dict(answers)
        self.requests: list[Call[Any]] = []
        self.timeouts: list[float | None] = []
        self.payload = b""
        self.events: list[Event] = []
        self.fills: list[FakeFill] = []
        self.created: list[tuple[str, int, dict[str, Any]]] = []
        self.is_closed = False
        self.held_pins = 0
        self.session = HelloReply(
            session=1,
            token=b"t",
            fd_socket="",
            server="0.1.0",
            uid=0,
            gid=0,
            pid=1,
            inline_limit_bytes=16384,
            call_by_value_bytes=1024,
            page_bytes=1 << 20,
        )

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.is_closed = True

    def call(self, request: Call[Any], timeout_s: float | None = None) -> object:
        self.requests.append(request)
        self.timeouts.append(timeout_s)
        answer = self.answers[type(request)]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @property
    def is_held(self) -> bool:
        """As the pin that `pin` returns would tell."""
        return self.held_pins > 0

    # Listings turn their pages as libmem does, over `call`.
    _iterate: Any = Client._iterate
    namespaces: Any = Client.namespaces
    list: Any = Client.list
    fsck: Any = Client.fsck
    sessions: Any = Client.sessions
    pins: Any = Client.pins
    transitions: Any = Client.transitions
    limits: Any = Client.limits

    def read(self, name: str) -> bytes:
        return self.payload

    @contextmanager
    def map(self, name: str) -> Iterator[bytes]:
        yield self.payload

    def create(self, name: str, size_bytes: int, **options: Any) -> FakeFill:
        self.created.append((name, size_bytes, options))
        self.fills.append(FakeFill(size_bytes))
        return self.fills[-1]

    @contextmanager
    def pin(self, name: str) -> Iterator["FakeClient"]:
        self.held_pins += 1
        try:
            yield self
        finally:
            self.held_pins = 0

    def info(self) -> object:
        return self.call(Info())

    def shutdown(self) -> None:
        self.requests.append(Shutdown())

    def watch(
        self, under: str, *, since_seq: int | None, timeout_s: float | None
    ) -> Iterator[Event]:
        yield from self.events
        if timeout_s is None:
            raise KeyboardInterrupt


class Outcome(NamedTuple):
    """What a memctl run left behind."""

    status: int
    out: str
    err: str
    client: FakeClient

    @property
    def lines(self) -> list[Any]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Memctl:
    """Runs command lines against one FakeClient."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.client = FakeClient({})
        self.connections: list[tuple[Path | None, float]] = []
        self.refusal: MemError | None = None
        self.is_terminal = False
        self._capsys = capsys

    def _connect(
        self, runtime_dir: Path | None = None, *, timeout_s: float = 0.0, name: str | None = None
    ) -> FakeClient:
        self.connections.append((runtime_dir, timeout_s))
        if self.refusal is not None:
            raise self.refusal
        return self.client

    @property
    def settings(self) -> Settings:
        """Fresh settings that connect to the fake."""
        return Settings(connect=cast(Connect, self._connect))

    def __call__(self, *argv: str, answers: Answers | None = None) -> Outcome:
        if answers is not None:
            self.client.answers = dict(answers)
        with ExitStack() as stack:
            for stream in (sys.stdout, sys.stderr) if self.is_terminal else ():
                stack.enter_context(mock.patch.object(stream, "isatty", return_value=True))
            status = main(argv, self.settings)
        out, err = self._capsys.readouterr()
        return Outcome(status, out, err, self.client)


def make_stat(name: str = "/notes/today", **changes: Any) -> Stat:
    """A cube as the daemon would describe it."""
    facts: dict[str, Any] = {
        "name": name,
        "id": bytes(range(16)),
        "type": CubeType.PLAINTEXT,
        "version": 3,
        "latest_version": 3,
        "size_bytes": 1536,
        "digest": b"\xab" * 16,
        "created_ns": 1_700_000_000_000_000_000,
        "modified_ns": 1_700_000_100_000_000_000,
        "descriptive": Descriptive(title="A title"),
        "governance": Governance(mode=0o640, owner_uid=0, owner_gid=0, priority=60),
        "behaviour": Behaviour(reads=4),
        "durability": Durability.DURABLE,
        "tiers": ("ram", "disk"),
    }
    return Stat(**{**facts, **changes})

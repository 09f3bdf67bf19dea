"""`rpc`: what one syscall costs above the bare transport.

Ours is `stat_cube` through libmem and a whole daemon: identity, permission, page table. The peer
is the least that could answer at all: a ROUTER in a loop of its own process that decodes msgpack
and encodes msgpack, over the same kind of socket, with frames of the same sizes both ways.

A synchronous call takes three times as long where its two sides run on different cores as where
they share one, and a scheduler left alone changes its mind between rounds. So the sides are
placed: client and server each on a core of its own, as two programs of a machine at rest would
be, and once more all on one core, where nothing but the instructions counts.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import zmq

import libmem
from libmem.abi.calls import StatCube
from libmem.abi.structs import Descriptive
from libmem.abi.wire import encode_reply, encode_request
from memosd.tools.bench.corpus import note
from memosd.tools.bench.daemon import Daemon, private_daemon
from memosd.tools.bench.process import Worker, on_core
from memosd.tools.bench.report import Bar, Report, Row, at_most, row
from memosd.tools.bench.samples import interleave, percentile, ratios, sample

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_CUBE: Final = "/bench/rpc/cube"
_SEQ: Final = 1000
"""Any number with the length that most sequence numbers of a run have."""


@dataclass(frozen=True)
class Plan:
    rounds: int
    calls: int
    """Calls of each side in one round."""


FULL = Plan(rounds=15, calls=1000)
QUICK = Plan(rounds=5, calls=400)


class Frames(NamedTuple):
    """One `stat_cube` as it travels."""

    request: bytes
    reply: bytes


class Times(NamedTuple):
    """Microseconds of each call, by rounds."""

    ours: list[list[float]]
    peers: list[list[float]]

    def rows(self, prefix: str, label: str, share: float, bar: Bar | None = None) -> list[Row]:
        """Ratio and both values of one percentile."""
        mine = [percentile(times, share) for times in self.ours]
        theirs = [percentile(times, share) for times in self.peers]
        where = "all on one core" if prefix else ""
        return [
            row(f"{prefix}ratio_{label}", ratios(mine, theirs), where or "stat_cube / echo", bar),
            row(f"{prefix}stat_{label}_us", sample(mine), where or "stat_cube through libmem"),
            row(f"{prefix}echo_{label}_us", sample(theirs), where or "bare pyzmq + msgpack echo"),
        ]


def measure(plan: Plan, directory: Path) -> Report:
    """Interleave rounds of both and compare medians and 99th percentiles, in µs."""
    cores = sorted(os.sched_getaffinity(0))
    apart, frames = _compare(plan, directory, cores[0], cores[-1])
    together, _ = _compare(plan, directory, cores[0], cores[0])
    return Report(
        "rpc",
        (
            *apart.rows("", "p50", 0.5, at_most(1.6)),
            *apart.rows("", "p99", 0.99),
            *together.rows("one_core_", "p50", 0.5),
        ),
        (
            f"the same frames: {len(frames.request)} bytes there, {len(frames.reply)} bytes back",
            f"{plan.rounds} rounds of {plan.calls} calls each, alternating; ratios per round",
            "client and server on a core each, except for the fields that say one core",
        ),
    )


def _compare(plan: Plan, directory: Path, near: int, far: int) -> tuple[Times, Frames]:
    """All rounds with the clients on one core and both servers on the other."""
    with (
        private_daemon(directory) as daemon,
        tempfile.TemporaryDirectory(prefix="memos-bench-") as place,
    ):
        address = f"ipc://{place}/echo"
        with on_core(far):
            daemon.start()
        frames = _frames(daemon)
        with on_core(far):
            server = Worker(_echo_server, address, frames.reply)
        with on_core(near):
            caller = Worker(_caller, daemon.runtime_dir, address, frames.request)
        with server, caller:
            server.result()
            caller.result()
            server.send("answer until an empty frame comes")
            times = interleave(
                plan.rounds,
                lambda: caller.ask(("stat", plan.calls)),
                lambda: caller.ask(("echo", plan.calls)),
            )
            caller.ask(("end", 1))
            server.result()
        daemon.stop()
    return Times(*times), frames


def _frames(daemon: Daemon) -> Frames:
    with daemon.connect() as client:
        client.make_namespace("/bench")
        about = Descriptive(title="One note", tags=("bench",))
        client.write(_CUBE, note(0, 512), descriptive=about)
        return Frames(
            encode_request(StatCube(_CUBE), _SEQ, client.epoch),
            encode_reply(_SEQ, client.epoch, client.stat(_CUBE)),
        )


@contextmanager
def _caller(
    runtime_dir: Path, address: str, request: bytes
) -> Iterator[Callable[[tuple[str, int]], list[float]]]:
    """Both clients; an order names one of them and a number of calls."""
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    message = decode(request)
    with (
        libmem.connect(runtime_dir) as client,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        dealer.linger = 1000
        dealer.connect(address)

        def echo() -> Any:
            dealer.send(encode(message))
            return decode(dealer.recv())

        calls: dict[str, Callable[[], Any]] = {
            "stat": lambda: client.stat(_CUBE),
            "echo": echo,
            "end": lambda: dealer.send(b""),
        }
        yield lambda order: _times_us(calls[order[0]], order[1])


def _times_us(call: Callable[[], object], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        before = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - before) / 1e3)
    return times


@contextmanager
def _echo_server(address: str, reply: bytes) -> Iterator[Callable[[object], None]]:
    """The peer's server: decode what comes, encode a reply as large as ours."""
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    answer = decode(reply)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(address)

        def serve(_: object) -> None:
            while True:
                peer, frame = router.recv_multipart()
                if not frame:
                    return
                decode(frame)
                router.send_multipart([peer, encode(answer)])

        yield serve

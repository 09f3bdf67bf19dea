"""`rpc`: what one syscall costs above the bare transport.

Ours is `stat_cube` through libmem and a whole daemon: identity, permission, page table. The peer
is the least that could answer at all: a ROUTER in a loop of its own process that decodes msgpack
and encodes msgpack, over the same kind of socket, with frames of the same sizes both ways.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq

import libmem
from libmem.abi.calls import StatCube
from libmem.abi.structs import Descriptive
from libmem.abi.wire import encode_reply, encode_request
from memosd.tools.bench.corpus import note
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.process import workers
from memosd.tools.bench.report import Report, at_most, row
from memosd.tools.bench.samples import interleave, percentile, ratios, sample

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_CUBE = "/bench/rpc/cube"
_SEQ = 1000
"""Any number with the length that most sequence numbers of a run have."""


@dataclass(frozen=True)
class Plan:
    rounds: int
    calls: int
    """Calls of each side in one round."""


FULL = Plan(rounds=15, calls=1000)
QUICK = Plan(rounds=5, calls=400)


def measure(plan: Plan, directory: Path) -> Report:
    """Interleave rounds of both and compare their medians and their 99th percentiles, in µs."""
    with private_daemon(directory) as daemon:
        daemon.start()
        with daemon.connect() as client:
            request, reply = _frames(client)
            with _echo(request, reply) as echo:
                ours, peers = interleave(
                    plan.rounds,
                    lambda: _times_us(lambda: client.stat(_CUBE), plan.calls),
                    lambda: _times_us(echo, plan.calls),
                )
        daemon.stop()
    rows = []
    for label, share, bar in (("p50", 0.5, at_most(1.6)), ("p99", 0.99, None)):
        mine = [percentile(times, share) for times in ours]
        theirs = [percentile(times, share) for times in peers]
        rows += [
            row(f"ratio_{label}", ratios(mine, theirs), "stat_cube / bare echo", bar),
            row(f"stat_{label}_us", sample(mine), "stat_cube through libmem"),
            row(f"echo_{label}_us", sample(theirs), "bare pyzmq + msgpack echo"),
        ]
    return Report(
        "rpc",
        tuple(rows),
        (
            f"both ways in the same frames: {len(request)} bytes there, {len(reply)} bytes back",
            f"{plan.rounds} rounds of {plan.calls} calls each, alternating; ratios per round",
        ),
    )


def _frames(client: libmem.Client) -> tuple[bytes, bytes]:
    """The request and the reply of one `stat_cube`, as they travel."""
    client.make_namespace("/bench")
    client.write(_CUBE, note(0, 512), descriptive=Descriptive(title="One note", tags=("bench",)))
    stat = client.stat(_CUBE)
    return (
        encode_request(StatCube(_CUBE), _SEQ, client.epoch),
        encode_reply(_SEQ, client.epoch, stat),
    )


def _times_us(call: Callable[[], object], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        before = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - before) / 1e3)
    return times


@contextmanager
def _echo(request: bytes, reply: bytes) -> Iterator[Callable[[], Any]]:
    """The peer's call: encode a request as large as ours, wait, decode the reply."""
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    message = decode(request)
    with tempfile.TemporaryDirectory(prefix="memos-bench-") as place, zmq.Context() as context:
        address = f"ipc://{place}/echo"
        with workers(_echo_server, (address, reply)) as [server]:
            server.send("answer until an empty frame comes")
            with context.socket(zmq.DEALER) as dealer:
                dealer.connect(address)

                def call() -> Any:
                    dealer.send(encode(message))
                    return decode(dealer.recv())

                try:
                    yield call
                finally:
                    dealer.send(b"")
                    server.result()


@contextmanager
def _echo_server(address: str, reply: bytes) -> Iterator[Callable[[Any], int]]:
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    answer = decode(reply)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(address)

        def serve(_: Any) -> int:
            served = 0
            while True:
                peer, frame = router.recv_multipart()
                if not frame:
                    return served
                decode(frame)
                router.send_multipart([peer, encode(answer)])
                served += 1

        yield serve

"""Hints, pins, policies and recordings through a real daemon and both clients."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import libmem
import libmem.aio
from libmem.abi import calls as c
from libmem.abi.calls import AdviceOutcome
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType
from memosd.kernel.policies.table import POLICIES
from tests.e2e.daemon import PATIENCE_S, Daemon, eventually

MIB = 1 << 20
CONFIG = """
[ram]
budget_bytes = "24 MiB"
[limits]
pins_per_session_bytes = "5 MiB"
"""
PINNER = """
import sys, time
import libmem
client = libmem.connect(sys.argv[1])
pin = client.pin("/w/c1")
print("pinned", flush=True)
time.sleep(600)
"""


@pytest.fixture
def client(idle: Daemon) -> Iterator[libmem.Client]:
    """Of a daemon with little RAM, and eight cubes of 4 MiB in it, the last ones in RAM."""
    idle.config = CONFIG
    idle.start()
    with libmem.connect(idle.runtime_dir) as client:
        client.make_namespace("/w")
        for number in range(1, 9):
            client.write(f"/w/c{number}", os.urandom(4 * MIB), type=CubeType.BLOB)
        yield client


@pytest.mark.slow
def test_a_hint_is_carried_out_and_answered(client: libmem.Client) -> None:
    for number in range(1, 9):
        client.evict(f"/w/c{number}")
    done = client.advise("/w/c1", "willneed", wait=True)
    assert (done.outcome, done.loaded_bytes) == (AdviceOutcome.DONE, 4 * MIB)
    assert done.took_ns > 0
    assert client.advise("/w/c1", "willneed", wait=True).outcome is AdviceOutcome.RESIDENT
    assert client.advise("/w/c2", "willneed", deadline_s=30).outcome is AdviceOutcome.QUEUED
    eventually(lambda: "ram" in client.stat("/w/c2").tiers, "the hint was carried out")
    refused = client.advise("/w/c3", "willneed", deadline_s=1000, wait=True)
    while refused.outcome is AdviceOutcome.DONE:  # up to the low watermark there is room
        client.write("/w/more", os.urandom(4 * MIB), type=CubeType.BLOB)
        client.evict("/w/c3")
        refused = client.advise("/w/c3", "willneed", deadline_s=1000, wait=True)
    assert refused.outcome is AdviceOutcome.REFUSED
    assert "no room" in refused.reason


@pytest.mark.slow
def test_many_hints_at_once(client: libmem.Client, idle: Daemon) -> None:
    for number in range(1, 9):
        client.evict(f"/w/c{number}")

    async def ask() -> list[c.AdviseReply]:
        async with await libmem.aio.connect(idle.runtime_dir) as many:
            hints = (many.advise(f"/w/c{n}", "willneed", wait=True) for n in range(1, 9))
            return list(await asyncio.gather(*hints))

    outcomes = [reply.outcome for reply in asyncio.run(ask())]
    assert outcomes.count(AdviceOutcome.DONE) == 4, "of 24 MiB the low watermark is 19.2"
    assert outcomes.count(AdviceOutcome.REFUSED) == 4


@pytest.mark.slow
def test_pins_have_a_ceiling_and_go_with_a_killed_process(
    client: libmem.Client, idle: Daemon
) -> None:
    program = [sys.executable, "-c", PINNER, str(idle.runtime_dir)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as pinner:
        assert pinner.stdout is not None
        assert pinner.stdout.readline() == "pinned\n"
        (pin,) = client.pins()
        assert (pin.pid, pin.name, pin.pinned_bytes) == (pinner.pid, "/w/c1", 4 * MIB)
        (holder,) = client.explain("/w/c1").holders
        assert (holder.kind, holder.pid) == ("pin", pinner.pid)
        with client.pin("/w/c2"):
            with pytest.raises(MemError) as caught:
                client.pin("/w/c3")
            assert caught.value.errno is Errno.EDQUOT
            assert caught.value.detail["pinned_bytes"] == 4 * MIB
        pinner.send_signal(signal.SIGKILL)
        pinner.wait(PATIENCE_S)
    eventually(lambda: not list(client.pins()), "the pin went with its process")
    client.evict("/w/c1")


@pytest.mark.slow
def test_the_policy_changes_under_load(client: libmem.Client) -> None:
    with client.map("/w/c8") as mapped:
        before = bytes(mapped[:16])
        for name in (*POLICIES, *POLICIES):
            assert client.set_policy(name).name == name
            for number in range(1, 9):
                with client.map(f"/w/c{number}") as cube:
                    assert len(cube) == 4 * MIB
            stat = client.info().reclaim
            assert stat.hits + stat.faults >= 8
        assert bytes(mapped[:16]) == before
    assert ("/", "policy") in {(name, each.action) for name, each in client.log()}


@pytest.mark.slow
def test_accesses_are_recorded(client: libmem.Client) -> None:
    begun = client.call(c.SetTrace(c.TraceAction.START, "t"))
    path = Path(begun.path)
    assert path.parent.name == "traces"
    for number in (1, 2, 1):
        with client.map(f"/w/c{number}") as cube:
            assert len(cube) == 4 * MIB
    client.unlink("/w/c2")
    ended = client.call(c.SetTrace(c.TraceAction.STOP))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["op"] for line in lines] == ["use", "use", "use", "remove"]
    assert lines[0]["key"] == lines[2]["key"] != lines[1]["key"] == lines[3]["key"]
    assert (ended.accesses, ended.size_bytes) == (4, path.stat().st_size)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_what_is_hot(client: libmem.Client) -> None:
    for number in (3, 3, 3, 5):
        with client.map(f"/w/c{number}") as cube:
            assert len(cube) == 4 * MIB
    assert [cube.name for cube in client.hottest(2).cubes] == ["/w/c3", "/w/c5"]

"""memctl against a real daemon; as a process of its own where signals and pipes matter."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

import libmem
from libmem.abi.errors import Errno
from memosd.tools.memctl.__main__ import main
from memosd.tools.memctl.command import Settings

MEMCTL = [sys.executable, "-m", "memosd.tools.memctl"]
PATIENCE_S = 30.0


class Done(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: bytes
    stderr: bytes


def _written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    stream.seek(0)
    return bytes(stream.buffer.read())


class World:
    """A daemon in a directory of its own, and memctl beside it."""

    def __init__(self, folder: Path) -> None:
        self.runtime_dir = folder / "run" / "memosd"
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "XDG_DATA_HOME": str(folder / "data"),
            "MEMOSD_RUNTIME_DIR": str(self.runtime_dir),
        }
        for name in ("run", "data"):
            (folder / name).mkdir(mode=0o700)
        self._log = (folder / "log").open("wb")
        self.daemon = subprocess.Popen(
            [sys.executable, "-m", "memosd", "--user"],
            env=self.environment,
            stdout=self._log,
            stderr=self._log,
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.run("status", "--timeout", "1").returncode:
            assert self.daemon.poll() is None, Path(self._log.name).read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def close(self) -> None:
        if self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        self._log.close()

    def run(self, *argv: str, stdin: bytes = b"") -> Done:
        """One command, in this process: another one costs more than all that it does."""
        out, err = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO())
        with tempfile.TemporaryFile() as source, io.TextIOWrapper(source) as reader:
            source.write(stdin)
            source.seek(0)
            with (
                redirect_stdout(out),
                redirect_stderr(err),
                mock.patch.object(sys, "stdin", reader),
            ):
                status = main(argv, Settings(runtime_dir=self.runtime_dir))
        return Done(status, *(_written(stream) for stream in (out, err)))

    def json(self, *argv: str, stdin: bytes = b"") -> list[Any]:
        """Standard output of a command that must succeed."""
        done = self.run(*argv, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def start(self, *argv: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*MEMCTL, *argv],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="memctl-"))
    world = World(folder)
    try:
        world.wait_until_ready()
        assert world.run("mkns", "/notes").returncode == 0
        yield world
    finally:
        world.close()
        shutil.rmtree(folder)


def test_who_is_connected(world: World) -> None:
    with libmem.connect(world.runtime_dir, name="holder") as client:
        client.write("/notes/held", bytes(1 << 20), type=libmem.CubeType.BLOB)
        with client.pin("/notes/held"):
            (held,) = [each for each in world.json("sessions") if each["client"] == "holder"]
        assert "holder" in {each.client for each in client.sessions()}
        client.unlink("/notes/held")
    assert (held["pid"], held["uid"]) == (os.getpid(), os.getuid())
    assert (held["pins"], held["pinned_bytes"]) == (1, 1 << 20)


def test_a_text_from_put_to_rm(world: World) -> None:
    text = b"The quick brown fox remembers the lazy dog.\n"
    (written,) = world.json(
        "put", "-", "/notes/fox", "--title", "Fox", "--tag", "animal", stdin=text
    )
    assert written["version"] == 1
    assert world.run("cat", "/notes/fox").stdout == text
    (stat,) = world.json("stat", "/notes/fox")
    assert stat["descriptive"]["tags"] == ["animal"]
    assert stat["digest"] == written["digest"]
    (hit,) = world.json("search", "lazy", "fox")
    assert hit["name"] == "/notes/fox"
    world.json("mv", "/notes/fox", "/notes/animals/fox")
    assert world.run("ls", "/notes").stdout.split() == [b"/notes/animals/"]
    assert world.run("ls", "-R").stdout.split() == [b"/notes/", b"/notes/animals/fox"]
    assert b"/notes/animals/fox" in world.run("ls", "-l", "/notes/animals/fox").stdout
    world.json("rm", "/notes/animals/fox")
    assert world.json("search", "lazy", "fox") == []
    gone = world.run("cat", "/notes/animals/fox")
    assert (gone.returncode, gone.stdout) == (Errno.ENOENT, b"")


@pytest.mark.parametrize("size_bytes", [0, 1000, 3 << 20])
def test_bytes_come_back_as_they_went(world: World, size_bytes: int) -> None:
    payload = os.urandom(size_bytes)
    name = f"/notes/bytes-{size_bytes}"
    world.json("put", "-", name, "--type", "blob", stdin=payload)
    assert world.run("cat", name).stdout == payload


def test_versions_and_compare_and_swap(world: World) -> None:
    for number in (b"one", b"two"):
        world.json("put", "-", "/notes/count", stdin=number)
    late = world.run("put", "-", "/notes/count", "--expect-version", "1", stdin=b"three")
    assert late.returncode == Errno.EVERSION
    assert b"hint: " in late.stderr
    assert world.run("cat", "/notes/count@v1").stdout == b"one"
    assert [stat["version"] for stat in world.json("history", "/notes/count")] == [2, 1]


def test_a_large_cube_leaves_ram_and_comes_back(world: World) -> None:
    payload = os.urandom(2 << 20)
    world.json("put", "-", "/notes/large", "--type", "blob", stdin=payload)
    world.json("migrate", "/notes/large", "disk")
    assert world.json("stat", "/notes/large")[0]["tiers"] == ["disk"]
    assert world.json("migrate", "/notes/large", "ram")[0]["tiers"] == ["ram", "disk"]
    assert world.json("evict", "/notes/large")[0]["freed_bytes"] >= len(payload)
    assert world.run("cat", "/notes/large").stdout == payload
    assert world.json("explain", "/notes/large")[0]["decisions"]
    assert "/notes/large" in {decision["name"] for decision in world.json("log")}


def test_a_pin_keeps_a_cube_in_ram_until_interrupted(world: World) -> None:
    world.json("put", "-", "/notes/pinned", "--type", "blob", stdin=os.urandom(2 << 20))
    pin = world.start("pin", "/notes/pinned")
    assert pin.stdout is not None
    assert pin.stdout.readline() == "/notes/pinned: pinned\n"
    assert world.json("stat", "/notes/pinned")[0]["pins"] == 1
    assert world.run("evict", "/notes/pinned").returncode == Errno.EBUSY
    pin.send_signal(signal.SIGINT)
    out, err = pin.communicate(timeout=PATIENCE_S)
    assert (pin.returncode, out, err) == (130, "", "")
    world.json("evict", "/notes/pinned")


def test_watch_sees_what_others_do(world: World) -> None:
    (before,) = world.json("status")
    watch = world.start("watch", "/notes", "--since", str(before["log_seq"]), "--json")
    assert watch.stdout is not None
    world.json("put", "-", "/notes/seen", stdin=b"x")
    world.json("rm", "/notes/seen")
    events = [json.loads(watch.stdout.readline()) for _ in range(2)]
    assert [(event["kind"], event["name"]) for event in events] == [
        ("write", "/notes/seen"),
        ("unlink", "/notes/seen"),
    ]
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=PATIENCE_S)
    assert (watch.returncode, err) == (130, "")


def test_namespaces_and_quotas(world: World) -> None:
    world.json("mkns", "/small", "--mode", "0750")
    world.json("quota", "/small", "--cubes", "1")
    world.json("put", "-", "/small/a", stdin=b"x")
    assert world.run("put", "-", "/small/b", stdin=b"x").returncode == Errno.EDQUOT
    assert world.run("rmns", "/small").returncode == Errno.ENOTEMPTY
    world.json("rm", "/small/a")
    world.json("rmns", "/small")
    assert world.run("quota", "/small").returncode == Errno.ENOENT


def test_the_store_is_sound(world: World) -> None:
    assert world.json("sync") == [{"is_synced": True}]
    total = world.json("fsck")[-1]
    assert total["broken"] == 0
    (info,) = world.json("status")
    assert {tier["name"] for tier in info["tiers"]} == {"ram", "disk"}
    assert info["pid"] == world.daemon.pid


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(world: World, unbuffered: str) -> None:
    world.json("put", "-", "/notes/long", "--type", "blob", stdin=bytes(4 << 20))
    with subprocess.Popen(
        [*MEMCTL, "cat", "/notes/long"],
        env={**world.environment, "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as cat:
        assert cat.stdout is not None
        assert cat.stderr is not None
        assert cat.stdout.read(10) == bytes(10)
        cat.stdout.close()
        assert cat.stderr.read() == b""
        assert cat.wait(PATIENCE_S) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told(world: World) -> None:
    world.json("put", "-", "/notes/short", stdin=b"x")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*MEMCTL, "cat", "/notes/short"],
            env=world.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == Errno.ENOSPC
    assert done.stderr.startswith(b"memctl: ENOSPC: standard output: ")
    assert b"Traceback" not in done.stderr


def test_bash_completes_cube_names(world: World) -> None:
    world.json("put", "-", "/notes/completed", stdin=b"x")
    environment = {
        **world.environment,
        "_MEMCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": "memctl cat /notes/comp",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(MEMCTL, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["/notes/completed"]


@pytest.mark.slow
def test_shutdown_and_then_nobody() -> None:
    folder = Path(tempfile.mkdtemp(prefix="memctl-"))
    world = World(folder)
    try:
        world.wait_until_ready()
        assert world.run("shutdown").returncode == 0
        assert world.daemon.wait(PATIENCE_S) == 0
        refused = world.run("ls")
        assert refused.returncode == Errno.ECONNREFUSED
        assert str(world.runtime_dir).encode() in refused.stderr
        assert b"memosd --user" in refused.stderr
    finally:
        world.close()
        shutil.rmtree(folder)

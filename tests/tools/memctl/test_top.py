"""top: rates between looks, what a frame holds, a terminal taken over and given back."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from libmem.abi.calls import (
    HotCube,
    Hottest,
    HottestReply,
    Info,
    InfoReply,
    Log,
    LogReply,
    PolicyStat,
)
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Decision
from tests.tools.memctl.fake import Memctl
from tests.tools.memctl.test_daemon import make_info

HOT = HotCube("/kv/\x1b[31msystem", b"\x01" * 16, 12.345, 94 << 20, ("ram", "disk"), 3, 4, 5)
DECISION = Decision(1_700_000_000_123_000_000, "evict", "coldest", {"freed_bytes": 4096})


def answers(*infos: InfoReply | MemError) -> dict[Any, Any]:
    """A daemon that says these things about itself, one a look."""
    left = list(infos)
    return {
        Info: lambda _request: left.pop(0) if len(left) > 1 else left[0],
        Hottest: HottestReply(cubes=(HOT,)),
        Log: LogReply(decisions=(("/kv/a", DECISION), ("", DECISION))),
    }


def test_one_look_as_plain_lines(memctl: Memctl) -> None:
    info = make_info(calls=1000, faults=20, evictions=10, uptime_ns=100 * 10**9)
    out = memctl("top", "--once", answers=answers(info)).out
    assert "10.0 calls/s, 0.2 faults/s, 0.1 evictions/s" in out
    assert "(since the start)" in out
    assert "   12.35   94.0 MiB  ram,disk  /kv/\\x1b[31msystem\n" in out
    assert re.search(r"\d\d:\d\d:\d\d\.123  evict             /kv/a  coldest freed=4.0 KiB\n", out)
    assert "ram       " in out
    assert "\x1b" not in out


def test_without_a_terminal_one_look_is_the_default(memctl: Memctl) -> None:
    outcome = memctl("top", answers=answers(make_info()))
    assert outcome.out.count("HOTTEST") == 1


def test_a_dumb_terminal_is_none(memctl: Memctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    memctl.is_terminal = True
    outcome = memctl("top", answers=answers(make_info()))
    assert outcome.out.count("HOTTEST") == 1
    assert "\x1b" not in outcome.out


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is 2 seconds after the one before."""
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


def rates(memctl: Memctl, *infos: InfoReply | MemError) -> list[Any]:
    """Of one look at each."""
    options = ("top", "--json", "-n", str(len(infos)))
    return [look["rates"] for look in memctl(*options, answers=answers(*infos)).lines]


def test_rates_are_those_between_two_looks(memctl: Memctl, no_pause: None) -> None:
    first = make_info(
        calls=100, faults=5, evictions=4, reclaim=PolicyStat("lru", hits=10, faults=5)
    )
    second = make_info(
        calls=300, faults=6, evictions=4, reclaim=PolicyStat("lru", hits=13, faults=6)
    )
    assert rates(memctl, first, second)[1] == {
        "calls_per_s": 100.0, "faults_per_s": 0.5, "evictions_per_s": 0.0, "hits": 3, "faults": 1,
        "is_since_start": False,
    }  # fmt: skip


def test_a_restart_and_another_policy_count_from_nothing(memctl: Memctl, no_pause: None) -> None:
    before = make_info(calls=1000, epoch=1, reclaim=PolicyStat("lru", since_ns=1, hits=100))
    other = make_info(calls=1000, epoch=1, reclaim=PolicyStat("new", since_ns=2, hits=7))
    again = make_info(calls=10, epoch=2, uptime_ns=10**10)
    _, second, third = rates(memctl, before, other, again)
    assert (second["hits"], second["calls_per_s"]) == (7, 0.0)
    assert (third["is_since_start"], third["calls_per_s"]) == (True, 1.0)


def test_a_daemon_that_is_away_is_waited_for(memctl: Memctl, no_pause: None) -> None:
    gone = MemError(Errno.ECONNREFUSED, "no daemon")
    outcome = memctl("top", "-n", "3", answers=answers(make_info(), gone, make_info()))
    assert outcome.status == 0
    assert outcome.out.count("HOTTEST") == 2
    assert "no daemon" in outcome.err
    assert memctl("top", answers=answers(gone)).status == Errno.ECONNREFUSED, "not at the start"


def test_other_failures_are_failures(memctl: Memctl, no_pause: None) -> None:
    broken = MemError(Errno.EIO, "broken")
    assert memctl("top", "-n", "2", answers=answers(make_info(), broken)).status == Errno.EIO


def test_notices_are_shown(memctl: Memctl) -> None:
    out = memctl("top", answers=answers(make_info(notices=("the disk is full",)))).out
    assert "notice: the disk is full" in out


# -- on a terminal -------------------------------------------------------------------------------

PROGRAM = """
import sys
from libmem.abi.errors import Errno, MemError
from memosd.tools.memctl.__main__ import main
from memosd.tools.memctl.command import Settings
from tests.tools.memctl.fake import FakeClient
from tests.tools.memctl.test_daemon import make_info
from tests.tools.memctl.test_top import answers

gone = MemError(Errno.ECONNREFUSED, "no daemon")
looks = [make_info(), gone, make_info(calls=10**6)]
client = FakeClient(answers(*looks))
settings = Settings(connect=lambda *_args, **_options: client)
sys.exit(main(["top", "-d", sys.argv[1]], settings))
"""


class Terminal:
    """A pseudo-terminal with top on it."""

    def __init__(self, delay_s: float) -> None:
        self._fd, far = pty.openpty()
        os.environ.setdefault("TERM", "xterm")
        self.before = termios.tcgetattr(far)
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(delay_s)],
            stdin=far, stdout=far, stderr=far, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""},
        )  # fmt: skip
        self.far = far
        self.text = ""

    def read_until(self, wanted: Callable[[str], bool]) -> None:
        end = time.monotonic() + 30
        while not wanted(self.text):
            assert time.monotonic() < end, self.text
            if select.select([self._fd], [], [], 0.1)[0]:
                self.text += os.read(self._fd, 65536).decode()

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.far, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._fd)
        os.close(self.far)


@pytest.fixture
def make_terminal() -> Iterator[Callable[[float], Terminal]]:
    """Starts top on a terminal."""
    made: list[Terminal] = []

    def make(delay_s: float) -> Terminal:
        made.append(Terminal(delay_s))
        return made[-1]

    yield make
    for terminal in made:
        terminal.close()


def _ended_well(terminal: Terminal) -> None:
    assert terminal.process.wait(30) == 0
    terminal.read_until(lambda text: text.rstrip().endswith("\x1b[?1049l"))
    assert "\x1b[?25h" in terminal.text
    assert termios.tcgetattr(terminal.far) == terminal.before
    assert "Traceback" not in terminal.text


@pytest.mark.slow
def test_the_screen_lives_over_a_restart_and_ends_with_a_key(
    make_terminal: Callable[[float], Terminal],
) -> None:
    terminal = make_terminal(0.1)
    terminal.read_until(lambda text: "no daemon" in text and "1,000,000" not in text)
    terminal.read_until(lambda text: text.rpartition("no daemon")[2].count("HOTTEST") >= 2)
    terminal.press(b"x")
    terminal.press(b"q")
    _ended_well(terminal)


@pytest.mark.slow
def test_ctrl_c_gives_the_terminal_back(make_terminal: Callable[[float], Terminal]) -> None:
    terminal = make_terminal(3600.0)
    terminal.read_until(lambda text: "HOTTEST" in text)
    terminal.process.send_signal(signal.SIGINT)
    _ended_well(terminal)


@pytest.mark.slow
def test_a_smaller_window_cuts_lines(make_terminal: Callable[[float], Terminal]) -> None:
    terminal = make_terminal(3600.0)
    terminal.read_until(lambda text: "LATEST" in text)
    terminal.resize(20, 5)
    terminal.read_until(lambda text: text.count("\x1b[H") == 2 and text.endswith("\x1b[J"))
    frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text.rpartition("\x1b[H")[2])
    lines = frame.split("\r\n")
    assert len(lines) <= 5
    assert all(len(line.strip("\r")) <= 20 for line in lines)
    terminal.press(b"q")
    _ended_well(terminal)

"""evict, migrate, pin, explain, log: what is asked, shown and let go."""

import pytest

from libmem.abi.calls import (
    Evict,
    EvictReply,
    Explain,
    ExplainReply,
    Info,
    Log,
    LogReply,
    MigrateCube,
    MigrateReply,
)
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Decision, TierName
from memosd.tools.memctl import residence
from tests.tools.memctl.fake import Memctl, make_stat

DECISION = Decision(
    time_ns=1_700_000_000_000_000_000,
    action="evict",
    reason="coldest of 12",
    numbers={"need_bytes": 4096, "idle_s": 2.5},
)


def test_evict(memctl: Memctl) -> None:
    outcome = memctl("evict", "/a/b", answers={Evict: EvictReply(freed_bytes=94 << 20)})
    assert outcome.out == "/a/b: 94.0 MiB freed\n"


def test_migrate(memctl: Memctl) -> None:
    outcome = memctl(
        "migrate", "/a/b", "disk", "--json", answers={MigrateCube: MigrateReply(tiers=("disk",))}
    )
    assert outcome.lines == [{"name": "/a/b", "tiers": ["disk"]}]
    assert outcome.client.requests == [MigrateCube(name="/a/b", tier=TierName.DISK)]


def test_pin_holds_and_lets_go(memctl: Memctl) -> None:
    outcome = memctl("pin", "/a/b", "--seconds", "0")
    assert outcome.status == 0
    assert outcome.out == "/a/b: pinned\n/a/b: let go\n"
    assert memctl.client.pins == 0


def test_pin_until_ctrl_c(memctl: Memctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residence, "_HEARTBEAT_S", 0.001)
    held: list[int] = []

    def look(_request: Info) -> object:
        held.append(memctl.client.pins)
        return KeyboardInterrupt() if len(held) == 3 else None

    outcome = memctl("pin", "/a/b", answers={Info: look})
    assert outcome.status == 130
    assert held == [1, 1, 1]
    assert memctl.client.pins == 0


def test_pin_says_so_when_a_restart_lost_it(
    memctl: Memctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residence, "_HEARTBEAT_S", 0.001)

    def lose(_request: Info) -> None:
        memctl.client.pins = 0

    outcome = memctl("pin", "/a/b", answers={Info: lose})
    assert outcome.status == Errno.ESTALE
    assert "the pin is gone" in outcome.err


def test_explain(memctl: Memctl) -> None:
    reply = ExplainReply(stat=make_stat(), residency="disk only", decisions=(DECISION,))
    lines = memctl("explain", "/notes/today", answers={Explain: reply}).out.splitlines()
    assert lines[0] == "/notes/today@v3  disk only"
    assert lines[2].endswith("evict   coldest of 12  need_bytes=4096 idle_s=2.5")


def test_explain_of_what_nothing_is_remembered(memctl: Memctl) -> None:
    reply = ExplainReply(stat=make_stat(), residency="inline", decisions=())
    outcome = memctl("explain", "/notes/today", answers={Explain: reply})
    assert outcome.out == "/notes/today@v3  inline\n"
    assert "no decision" in outcome.err


def test_log(memctl: Memctl) -> None:
    answers = {Log: LogReply(decisions=(("/a/b", DECISION),))}
    (row,) = memctl("log", "-n", "5", "--json", answers=answers).lines
    assert row == {
        "name": "/a/b",
        "time_ns": DECISION.time_ns,
        "action": "evict",
        "reason": "coldest of 12",
        "numbers": {"need_bytes": 4096, "idle_s": 2.5},
    }
    assert memctl.client.requests == [Log(limit=5)]
    assert "evict   /a/b  coldest of 12 need_bytes=4096" in memctl("log").out


def test_log_when_nothing_happened(memctl: Memctl) -> None:
    outcome = memctl("log", answers={Log: LogReply(decisions=())})
    assert outcome.out == ""
    assert "no decisions yet" in outcome.err


def test_a_pin_that_cannot_be_had(memctl: Memctl, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise MemError(Errno.ENOMEM, "no room", need_bytes=10, free_bytes=1)

    monkeypatch.setattr(memctl.client, "pin", refuse)
    outcome = memctl("pin", "/a/b")
    assert outcome.status == Errno.ENOMEM
    assert outcome.out == ""

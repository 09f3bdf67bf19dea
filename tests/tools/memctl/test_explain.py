"""explain, log: what is told of why, with numbers that people read."""

import time

import pytest

from libmem.abi.calls import Explain, ExplainReply, Holder, Log, LogReply
from libmem.abi.structs import Behaviour, Decision
from tests.tools.memctl.fake import Memctl, make_stat

DECISION = Decision(
    time_ns=1_700_000_000_000_000_000,
    action="evict",
    reason="coldest of 12",
    numbers={"need_bytes": 4096, "idle_s": 2.5},
)


def test_explain(memctl: Memctl) -> None:
    reply = ExplainReply(stat=make_stat(), residency="disk only", decisions=(DECISION,))
    lines = memctl("explain", "/notes/today", answers={Explain: reply}).out.splitlines()
    assert lines[0] == "/notes/today@v3  disk only"
    assert lines[-1].endswith("evict   coldest of 12  need=4.0 KiB idle=2.5 s")
    (row,) = memctl("explain", "/notes/today", "--json").lines
    assert row["decisions"][0]["numbers"] == {"need_bytes": 4096, "idle_s": 2.5}


SECOND_NS = 1_000_000_000


def facts(memctl: Memctl, monkeypatch: pytest.MonkeyPatch, **fields: object) -> dict[str, str]:
    """What explain says of a cube, by its titles."""
    now_ns = DECISION.time_ns + 90 * SECOND_NS
    monkeypatch.setattr(time, "time_ns", lambda: now_ns)
    stat = make_stat(behaviour=Behaviour(reads=4, last_access_ns=now_ns - 5 * SECOND_NS))
    reply = ExplainReply(**{"stat": stat, "residency": "here", "decisions": (), **fields})  # type: ignore[arg-type]
    lines = memctl("explain", "/notes/today", answers={Explain: reply}).out.splitlines()
    return {line[2:15].strip(): line[16:] for line in lines[1:] if line.startswith("  ")}


def test_explain_of_what_is_in_ram(memctl: Memctl, monkeypatch: pytest.MonkeyPatch) -> None:
    since_ns = DECISION.time_ns + 80 * SECOND_NS
    holder = Holder(kind="pin", session=1, uid=0, pid=7, client="work", since_ns=since_ns)
    found = facts(
        memctl, monkeypatch, holders=(holder,), policy="lru", position=1234, restore_s=0.0125,
        numbers={"priority": 50, "size_bytes": 2048}, since_ns=since_ns, is_waiting=True,
    )  # fmt: skip
    assert found == {
        "held by": "pin of root, pid 7 (work), for 10 s",
        "wanted": "a hint asked for it; it is loaded while nobody waits for the disk",
        "in RAM": "for 10 s",
        "to go": "number 1,234 of its group, by lru: priority=50 size=2.0 KiB",
        "to bring back": "about 12.5 ms",
        "used": "4 reads; last 5 s ago",
    }
    assert facts(memctl, monkeypatch, position=-1, policy="x")["to go"] == (
        "far behind the first ones of its group, by x"
    )


def test_explain_of_what_was_evicted(memctl: Memctl, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Decision(DECISION.time_ns, "fill", "page file", {"load_ms": 3.25})
    found = facts(memctl, monkeypatch, decisions=(fill, DECISION, fill))
    assert found["evicted"] == "1 min 30 s ago: coldest of 12 need=4.0 KiB idle=2.5 s"
    assert found["to bring back"] == "it took 3.2 ms the last time"
    assert facts(memctl, monkeypatch)["to bring back"] == "not measured yet"


def test_explain_of_what_nothing_is_remembered(memctl: Memctl) -> None:
    reply = ExplainReply(stat=make_stat(), residency="inline", decisions=())
    outcome = memctl("explain", "/notes/today", answers={Explain: reply})
    assert outcome.out.splitlines()[0] == "/notes/today@v3  inline"
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
    assert "evict   /a/b  coldest of 12 need=4.0 KiB" in memctl("log").out


def test_log_when_nothing_happened(memctl: Memctl) -> None:
    outcome = memctl("log", answers={Log: LogReply(decisions=())})
    assert outcome.out == ""
    assert "no decisions yet" in outcome.err

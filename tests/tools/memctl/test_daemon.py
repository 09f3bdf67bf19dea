"""status, sessions, fsck, sync, shutdown, and the namespace commands."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from libmem.abi.calls import (
    Done,
    Fsck,
    FsckReply,
    Info,
    InfoReply,
    ListSessions,
    ListSessionsReply,
    MakeNamespace,
    RemoveNamespace,
    SetQuota,
    Shutdown,
    StatNamespace,
    Sync,
)
from libmem.abi.errors import Errno
from libmem.abi.state import MachineStat, RecallStat, SessionStat, StallStat, TierStat, WorkerStat
from libmem.abi.structs import Finding, NamespaceStat, Quota, Usage
from memosd.tools.memctl.daemon import tier_lines
from tests.tools.memctl.fake import Memctl

SPACE = NamespaceStat(
    name="/notes",
    owner_uid=0,
    owner_gid=0,
    mode=0o700,
    created_ns=1,
    quota=Quota(disk_bytes=1 << 30, cubes=10),
    usage=Usage(disk_bytes=3 << 20, cubes=2),
)


def make_info(**changes: Any) -> InfoReply:
    """A daemon's state."""
    facts: dict[str, Any] = {
        "server": "memosd 0.1.0",
        "epoch": 255,
        "pid": 4711,
        "uptime_ns": 125 * 10**9,
        "sessions": 3,
        "namespaces": 2,
        "cubes": 1234,
        "tiers": (
            TierStat("ram", 100 << 20, 50 << 20, 7, pinned_bytes=1 << 20, dirty_bytes=2 << 20),
            TierStat("disk", 1 << 30, 0, 0),
        ),
        "log_seq": 10,
        "indexed_seq": 10,
        "calls": 5,
        "faults": 2,
        "evictions": 1,
        "rss_bytes": 40 << 20,
        "table_bytes": 3 << 20,
        "data_dir": "/var/lib/memosd",
        "policy": "lru",
        "indexer": "fts5",
    }
    return InfoReply(**{**facts, **changes})


def test_status(memctl: Memctl) -> None:
    out = memctl("status", answers={Info: make_info()}).out
    assert "pid 4711, up 2 min 5 s, epoch 255" in out
    assert "1,234 cubes in 2 namespaces" in out
    assert "/var/lib/memosd, table 3.0 MiB" in out
    assert "fts5, up to date" in out
    assert "############............  50%  50.0 MiB of 100.0 MiB" in out
    assert "7 cubes, 1.0 MiB pinned, 2.0 MiB not yet on disk" in out
    assert "........................   0%  0 B of 1.0 GiB" in out
    assert "notice" not in out


def test_status_shows_what_the_administrator_should_know(memctl: Memctl) -> None:
    info = make_info(indexed_seq=4, notices=("1 cube is quarantined",))
    out = memctl("status", answers={Info: info}).out
    assert "fts5, 6 events behind" in out
    assert "notice    1 cube is quarantined" in out


def test_status_shows_workers_and_how_far_recall_is(memctl: Memctl) -> None:
    busy = WorkerStat(4712, "busy", 7, 300 << 20, 0)
    gone = WorkerStat(0, "waiting", 0, 0, 2, "killed by signal 9")
    recall = RecallStat("a" * 64, 1200, 34)
    out = memctl("status", answers={Info: make_info(workers=(busy, gone), recall=recall)}).out
    assert "worker    pid 4712, busy, 7 jobs, 300.0 MiB\n" in out
    assert "waiting, 0 jobs, 0 B, restarted 2 times; the last one: killed by signal 9" in out
    assert "recall    1,200 passages, 34 without a vector yet, by aaaaaaaaaaaa\n" in out


def test_status_says_why_there_are_no_vectors(memctl: Memctl) -> None:
    info = make_info(recall=RecallStat(problem="no embedder is configured"))
    out = memctl("status", answers={Info: info}).out
    assert "recall    by words alone: no embedder is configured" in out
    assert "worker" not in out


def test_status_shows_pressure_and_what_the_machine_has_left(memctl: Memctl) -> None:
    some, full = StallStat(12.5, 3.25, 0.5, 1_234_567), StallStat(1, 0, 0, 9)
    ram = TierStat("ram", 64 << 20, 64 << 20, 7, configured_bytes=100 << 20, some=some, full=full)
    machine = MachineStat(8 << 30, 2 << 30, 1 << 30, "memory.high of a", 4.5, 2.0)
    out = memctl("status", answers={Info: make_info(tiers=(ram,), machine=machine)}).out
    assert "100%  64.0 MiB of 64.0 MiB, 100.0 MiB when the machine has room" in out
    assert "some avg10=12.50 avg60=3.25 avg300=0.50 total=1234567" in out
    assert "full avg10=1.00 avg60=0.00 avg300=0.00 total=9" in out
    assert "2.0 GiB available (memory.high of a), 1.0 GiB in reserve, looked at each second" in out
    assert "stalls: some avg10=4.50 full avg10=2.00" in out
    worker = WorkerStat(pid=9, state="idle", jobs=0, rss_bytes=300 << 20, restarts=0)
    out = memctl("status", answers={Info: make_info(workers=(worker,))}).out
    assert "40.0 MiB resident and 300.0 MiB in 1 worker, reclaim by lru" in out
    assert "machine " not in out, "nobody watches it"


def test_status_for_programs(memctl: Memctl) -> None:
    (info,) = memctl("status", "--json", answers={Info: make_info()}).lines
    assert info["tiers"][0]["used_bytes"] == 50 << 20
    assert info["notices"] == []


@pytest.mark.parametrize(
    ("used_bytes", "cells"), [(0, 0), (1, 1), (500, 12), (999, 24), (1000, 24), (2000, 24)]
)
def test_a_bar_is_empty_only_when_nothing_is_used(used_bytes: int, cells: int) -> None:
    (_, full, rest, _), *_ = tier_lines(TierStat("ram", 1000, used_bytes, 1), ("#", "."))
    assert full[0] == "#" * cells
    assert len(full[0] + rest[0]) == 24


def test_sessions(memctl: Memctl) -> None:
    mine = SessionStat(
        number=7, uid=0, gid=0, pid=4711, client="trainer.py", since_ns=1_700_000_000 * 10**9,
        is_bound=True, pins=2, maps=3, fills=1, pinned_bytes=5 << 20, calls=4,
    )  # fmt: skip
    late = msgspec.structs.replace(mine, number=9, client="\x1b[2J", is_bound=False)
    pages = {0: ListSessionsReply((mine,), 7), 7: ListSessionsReply((late,))}
    answers = {ListSessions: lambda request: pages[request.after]}
    title, first, second = memctl("sessions", answers=answers).out.splitlines()
    assert title.split() == [
        "SESSION", "USER", "PID", "PINS", "PINNED", "MAPS", "FILLS", "CALLS", "SINCE", "CLIENT",
    ]  # fmt: skip
    assert first.split()[:9] == ["7", "root", "4711", "2", "5.0", "MiB", "3", "1", "4"]
    assert first.endswith("trainer.py")
    assert second.endswith(r"\x1b[2J (not bound)")
    shown, _ = memctl("sessions", "--json").lines
    assert (shown["client"], shown["pinned_bytes"], shown["is_bound"]) == (
        "trainer.py", 5 << 20, True,
    )  # fmt: skip


def stretches(*replies: FsckReply) -> Iterator[FsckReply]:
    yield from replies


def test_fsck_walks_the_whole_table(memctl: Memctl) -> None:
    replies = stretches(FsckReply(200, (), "next"), FsckReply(5, ()))
    outcome = memctl("fsck", answers={Info: make_info(), Fsck: lambda _: next(replies)})
    assert outcome.status == 0
    assert outcome.out == "205 checked, 0 broken\n"
    cursors = [request.cursor for request in outcome.client.requests if isinstance(request, Fsck)]
    assert cursors == ["", "next"]


def test_fsck_fails_when_something_is_broken(memctl: Memctl) -> None:
    finding = Finding("/a/b", bytes(16), 2, "page 3 differs", "quarantined")
    answers: dict[Any, Any] = {Info: make_info(), Fsck: FsckReply(9, (finding,))}
    outcome = memctl("fsck", "--repair", answers=answers)
    assert outcome.status == Errno.ECORRUPT
    assert outcome.out == "/a/b@v2: page 3 differs (quarantined)\n9 checked, 1 broken\n"
    assert outcome.client.requests[-1] == Fsck(limit=100, repair=True)
    for damaged, shown in (("/a/b", "/a/b: a row"), ("", f"{bytes(16).hex()}: a row")):
        answers[Fsck] = FsckReply(9, (Finding(damaged, bytes(16), 0, "a row"),))
        assert memctl("fsck", answers=answers).out.startswith(shown)
    answers[Fsck] = FsckReply(9, (finding,))
    found, total = memctl("fsck", "--json", answers=answers).lines
    assert found["problem"] == "page 3 differs"
    assert total == {"checked": 9, "broken": 1}


def test_sync_and_shutdown(memctl: Memctl) -> None:
    assert memctl("sync", answers={Sync: Done()}).out == "on disk\n"
    assert memctl("shutdown").out == "memosd is shutting down\n"
    assert memctl.client.requests == [Sync(), Shutdown()]


def test_mkns_and_rmns(memctl: Memctl) -> None:
    answers = {MakeNamespace: SPACE, RemoveNamespace: Done()}
    assert memctl("mkns", "/notes", "--mode", "0750", answers=answers).out.startswith("/notes  rwx")
    memctl("mkns", "/notes")
    assert memctl("rmns", "/notes").out == "removed /notes\n"
    assert memctl.client.requests == [
        MakeNamespace(name="/notes", mode=0o750),
        MakeNamespace(name="/notes", mode=None),
        RemoveNamespace(name="/notes"),
    ]


def test_quota_shows(memctl: Memctl) -> None:
    lines = memctl("quota", "/notes", answers={StatNamespace: SPACE}).out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["RESOURCE", "USED", "QUOTA"],
        ["disk", "3.0", "MiB", "1.0", "GiB"],
        ["ram", "0", "B", "none"],
        ["cubes", "2", "10"],
    ]


def test_quota_sets_only_what_was_given(memctl: Memctl) -> None:
    def set_quota(request: SetQuota) -> NamespaceStat:
        return msgspec.structs.replace(SPACE, quota=request.quota)

    answers = {StatNamespace: SPACE, SetQuota: set_quota}
    argv = ["quota", "/notes", "--ram", "512MiB", "--cubes", "0", "--json"]
    (space,) = memctl(*argv, answers=answers).lines
    assert space["quota"] == {"disk_bytes": 1 << 30, "ram_bytes": 512 << 20, "cubes": 0}


def test_quota_refuses_what_is_no_size(memctl: Memctl) -> None:
    outcome = memctl("quota", "/notes", "--disk", "much", answers={StatNamespace: SPACE})
    assert outcome.status == Errno.EINVAL
    assert "'much' is not a size" in outcome.err

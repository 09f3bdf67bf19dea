"""policy, trace: what is asked of the daemon and shown."""

import pytest

from libmem.abi.calls import Info, PolicyStat, SetPolicy, SetTrace, TraceAction, TraceStat
from libmem.abi.errors import Errno, MemError
from memosd.tools.memctl.policy import hit_share
from tests.tools.memctl.fake import Memctl
from tests.tools.memctl.test_daemon import make_info

STAT = PolicyStat(
    name="new", known=("lru", "new", "other"), configured="lru", since_ns=10**18, hits=1999,
    faults=1, evictions=3,
)  # fmt: skip


def test_the_policies_and_the_one_in_charge(memctl: Memctl) -> None:
    outcome = memctl("policy", answers={Info: make_info(reclaim=STAT)})
    _, lru, new, other = outcome.out.splitlines()
    assert lru.split() == ["lru", "configured"]
    assert new.split()[:8] == ["new", "in", "charge", "1,999", "1", "100.0", "%", "3"]
    assert other.split() == ["other"]
    assert memctl("policy", "--json").lines[0]["hits"] == 1999


def test_another_one_is_put_in_charge(memctl: Memctl) -> None:
    outcome = memctl("policy", "new", answers={SetPolicy: STAT})
    assert outcome.client.requests == [SetPolicy("new")]
    assert "in charge" in outcome.out
    refusal = MemError(Errno.EPERM, "only the administrator")
    assert memctl("policy", "x", answers={SetPolicy: refusal}).status == Errno.EPERM


@pytest.mark.parametrize(
    ("hits", "faults", "text"), [(0, 0, "-"), (1, 0, "100.0 %"), (1, 2, "33.3 %")]
)
def test_the_share_of_hits(hits: int, faults: int, text: str) -> None:
    assert hit_share(hits, faults) == text


def test_a_recording_is_started_and_shown(memctl: Memctl) -> None:
    stat = TraceStat(True, "/d/traces/t", 1, 1234, 2048, 1 << 20)
    outcome = memctl("trace", "start", "--name", "t", "--max", "1MiB", answers={SetTrace: stat})
    assert outcome.client.requests == [SetTrace(TraceAction.START, "t", 1 << 20)]
    assert outcome.out == "recording: 1,234 lines, 2.0 KiB, /d/traces/t\n"
    assert memctl("trace", "status", "--json").lines[0]["accesses"] == 1234


def test_what_a_recording_lacks_is_told(memctl: Memctl) -> None:
    stat = TraceStat(False, "/d/t", 1, 1, 99, 4096, dropped=7, problem="disk full")
    out = memctl("trace", "stop", answers={SetTrace: stat}).out
    assert out == (
        "recorded: 1 line, 99 B, /d/t; 7 more came too fast for the disk; ended: disk full\n"
    )
    assert "nothing" in memctl("trace", "status", answers={SetTrace: TraceStat(False)}).out

"""search and watch: words marked and unmarked, events as they come."""

from libmem.abi.calls import Search, SearchReply
from libmem.abi.structs import CubeType, Event, EventKind, Hit
from memosd.tools.memctl.cubes import owner
from tests.tools.memctl.fake import Memctl

HIT = Hit(
    name="/notes/today",
    id=bytes(16),
    version=2,
    score=7.25,
    rank=1,
    snippet="the \x02kernel\x03 boots\n and the \x02kernel\x03 \x1b[2J serves",
    signals={"bm25": 7.25},
)
EVENT = Event(
    seq=12,
    time_ns=1_700_000_000_000_000_000,
    kind=EventKind.RENAME,
    name="/notes/b",
    old_name="/notes/a",
    version=3,
)


def test_search_asks_for_all_words_together(memctl: Memctl) -> None:
    argv = ["search", "kernel", "boots", "--under", "/notes", "-k", "3", "--type", "plaintext"]
    outcome = memctl(*argv, answers={Search: SearchReply(hits=(HIT,))})
    assert outcome.client.requests == [
        Search(query="kernel boots", under="/notes", k=3, types=(CubeType.PLAINTEXT,))
    ]
    assert outcome.out.splitlines() == [
        "  1. /notes/today  v2  7.25",
        "     the kernel boots and the kernel \\x1b[2J serves",
    ]


def test_search_for_programs(memctl: Memctl) -> None:
    (hit,) = memctl("search", "kernel", "--json", answers={Search: SearchReply(hits=(HIT,))}).lines
    assert hit["name"] == "/notes/today"
    assert hit["signals"] == {"bm25": 7.25}
    assert hit["snippet"] == HIT.snippet


def test_search_without_hits_is_no_failure(memctl: Memctl) -> None:
    outcome = memctl("search", "nothing", answers={Search: SearchReply(hits=())})
    assert (outcome.status, outcome.out) == (0, "")
    assert "nothing found" in outcome.err
    assert memctl("search", "nothing", "--json").err == ""


def test_watch_prints_events_until_ctrl_c(memctl: Memctl) -> None:
    memctl.client.events = [EVENT]
    outcome = memctl("watch", "/notes")
    assert outcome.status == 130
    assert outcome.err == ""
    words = outcome.out.split()
    assert words[0] == "12"
    assert words[3:] == ["rename", owner(0), "/notes/a", "->", "/notes/b@v3"]


def test_watch_ends_when_nothing_happens_any_more(memctl: Memctl) -> None:
    memctl.client.events = [EVENT, EVENT]
    outcome = memctl("watch", "--idle", "0.1", "--json")
    assert outcome.status == 0
    assert [line["kind"] for line in outcome.lines] == ["rename", "rename"]

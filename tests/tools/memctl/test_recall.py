"""search and watch: words marked and unmarked, events as they come."""

import msgspec

from libmem.abi.calls import Search, SearchReply
from libmem.abi.structs import (
    Beside,
    CubeType,
    Event,
    EventKind,
    Hit,
    SearchMode,
    Understood,
)
from memosd.tools.memctl.cubes import owner
from memosd.tools.memctl.units import parse_time
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


def test_search_asks_for_all_that_can_be_asked(memctl: Memctl) -> None:
    argv = [
        "search", "boots", "--mode", "words", "--producer", "ann", "--producer", "bob",
        "--session", "monday", "--kind", "fact", "--since", "2024-05-07", "--until", "2024-05-08",
        "--as-of", "ever", "--beside", "2", "--budget", "500",
    ]  # fmt: skip
    (request,) = memctl(*argv, answers={Search: SearchReply(hits=())}).client.requests
    assert request == Search(
        "boots",
        mode=SearchMode.WORDS,
        producers=("ann", "bob"),
        sessions=("monday",),
        semantic_types=("fact",),
        event_from_ns=parse_time("2024-05-07"),
        event_to_ns=parse_time("2024-05-09") - 1000,
        as_of_ns=-1,
        beside=2,
        budget_tokens=500,
    )
    refused = memctl("search", "boots", "--since", "yesterday")
    assert (refused.status, "yesterday" in refused.err) == (22, True)


WHY = SearchReply(
    hits=(
        msgspec.structs.replace(
            HIT,
            signals={"words": 2.0, "meaning": 0.5},
            beside=(
                Beside(name="/n/b", distance=1, text="after\nit", producer="bob"),
                Beside(name="/n/a", distance=-1, text="before"),
            ),
        ),
        msgspec.structs.replace(HIT, rank=2, signals={"words": 1.0}),
    ),
    understood=Understood(
        text="kernel boots",
        producers=("ann",),
        days=((parse_time("2024-05-01"), parse_time("2024-05-31", is_end=True)),),
    ),
    notice="ranked by words alone: no model",
)


def test_search_says_why(memctl: Memctl) -> None:
    outcome = memctl("search", "kernel", "--why", answers={Search: WHY})
    assert outcome.err == "ranked by words alone: no model\n"
    assert outcome.out.splitlines() == [
        "understood: 'kernel boots', by ann, from 2024-05-01 to 2024-05-31",
        "  1. /notes/today  v2  7.25",
        "     words               2  ####################",
        "     meaning           0.5  ####################",
        "   -1 before",
        "     the kernel boots and the kernel \\x1b[2J serves",
        "   +1 bob: after it",
        "  2. /notes/today  v2  7.25",
        "     words               1  ##########",
        "     the kernel boots and the kernel \\x1b[2J serves",
    ]


def test_programs_are_told_why_as_well(memctl: Memctl) -> None:
    outcome = memctl("search", "kernel", "--why", "--json", answers={Search: WHY})
    about, hit, _ = outcome.lines
    assert about["understood"]["producers"] == ["ann"]
    assert about["notice"] == WHY.notice
    assert hit["signals"] == {"words": 2.0, "meaning": 0.5}
    assert outcome.err == ""


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

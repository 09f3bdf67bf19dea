"""Search by meaning in a real daemon with a real model: what is found, and by whom."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import libmem
from libmem import CubeType, Descriptive, Governance, MemError
from libmem.abi.calls import Search, WriteCube
from libmem.abi.errors import Errno
from libmem.abi.structs import SearchMode
from tests.e2e.actor import Actor, require_other_users
from tests.e2e.daemon import Daemon, eventually, running
from tests.e2e.memories import settle

DAY_NS = 86_400 * 10**9
MAY_2023_NS = 1_683_500_000 * 10**9
OTHER = 60_002
SAID = [
    ("ann", "Have you heard from the hospital?"),
    ("bob", "Yes, they called this morning. She is doing fine."),
    ("ann", "What a relief! By the way, I adopted a kitten from the shelter."),
    ("bob", "My car broke down on the motorway yesterday."),
    ("ann", "The pasta at the new Italian place is superb."),
]


@pytest.fixture(scope="module")
def shared(minilm: Path) -> Iterator[Daemon]:
    """A daemon that everybody may connect to, with a model."""
    daemon = Daemon()
    daemon.config = '[listen]\nmode = "0666"\n'
    daemon.folder.chmod(0o755)
    daemon.embedder = str(minilm)
    with running(daemon):
        yield daemon


def names(client: libmem.Client, query: str, **options: object) -> list[str]:
    """Names of the hits below /t; the worker may take its time to start."""
    request = Search(query, under="/t", wait_ms=60_000, **options)  # type: ignore[arg-type]
    return [hit.name for hit in client.call(request, timeout_s=70).hits]


def best(client: libmem.Client, query: str) -> str:
    return names(client, query)[0]


def tell(client: libmem.Client) -> None:
    """Write the conversation."""
    for position, (producer, text) in enumerate(SAID):
        told = Descriptive(
            producer=producer,
            session="call",
            position=position,
            event_time_ns=MAY_2023_NS + position * 30 * DAY_NS,
        )
        client.write(f"/t/call/{position}", text, descriptive=told)
    settle(client)


# -- what is found ---------------------------------------------------------------------------------


def test_what_is_meant_is_found_without_a_word_of_it(client: libmem.Client) -> None:
    tell(client)
    assert best(client, "Which pet does she own?") == "/t/call/2"
    assert best(client, "trouble with a vehicle") == "/t/call/3"
    assert best(client, "a good restaurant for dinner") == "/t/call/4"
    by_words = names(client, "trouble with a vehicle", mode=SearchMode.WORDS)
    assert "/t/call/3" not in by_words[:1]


def test_a_hit_says_what_its_score_is_made_of(client: libmem.Client) -> None:
    tell(client)
    reply = client.call(Search("What did Ann adopt last June?", under="/t", beside=1), timeout_s=70)
    first = reply.hits[0]
    assert first.name == "/t/call/2"
    assert {"bm25", "meaning", "producer"} <= first.signals.keys()
    assert reply.understood is not None
    assert reply.understood.producers == ("ann",)
    assert [(each.name, each.distance, each.producer) for each in first.beside] == [
        ("/t/call/1", -1, "bob"),
        ("/t/call/3", 1, "bob"),
    ]
    assert first.beside[0].text == SAID[1][1]


def test_it_is_found_by_words_at_once_and_by_meaning_soon(client: libmem.Client) -> None:
    client.write("/t/note", "The plumber comes on Thursday.")
    assert names(client, "plumber", mode=SearchMode.WORDS) == ["/t/note"]
    settle(client)
    assert names(client, "somebody repairs the pipes", mode=SearchMode.MEANING) == ["/t/note"]


def test_filters_leave_nothing_else(client: libmem.Client) -> None:
    tell(client)
    query = "what happened"
    assert set(names(client, query, producers=("bob",))) == {"/t/call/1", "/t/call/3"}
    window = {"event_from_ns": MAY_2023_NS + DAY_NS, "event_to_ns": MAY_2023_NS + 70 * DAY_NS}
    assert set(names(client, query, **window)) == {"/t/call/1", "/t/call/2"}
    assert names(client, query, sessions=("another",)) == []
    assert names(client, query, types=(CubeType.BLOB,)) == []


# -- what has changed shows in the next search -----------------------------------------------------


@pytest.mark.parametrize("mode", list(SearchMode))
def test_what_changed_shows_in_the_next_search(client: libmem.Client, mode: SearchMode) -> None:
    client.write("/t/a", "The kitten sleeps on the sofa.")
    client.write("/t/b", "The kitten chases a ball.")
    settle(client)

    def found() -> set[str]:
        return set(names(client, "kitten", mode=mode))

    assert found() == {"/t/a", "/t/b"}
    client.rename("/t/a", "/t/c")
    assert found() == {"/t/c", "/t/b"}
    client.unlink("/t/b")
    assert found() == {"/t/c"}
    client.write("/t/d", "The kitten has grown into a cat, that kitten.", supersedes=("/t/c",))
    settle(client)
    assert found() == {"/t/d"}
    assert set(names(client, "kitten", mode=mode, as_of_ns=-1)) == {"/t/c", "/t/d"}


def test_what_a_caller_may_not_read_leaves_no_trace(shared: Daemon) -> None:
    require_other_users()
    look = """
from libmem.abi.calls import Search
for query in ("kitten sofa", "What did Zenobia say?", "pets at home in May"):
    for mode in ("hybrid", "words", "meaning"):
        say(client.call(Search(query, "/all", mode=mode, beside=2, wait_ms=60000), timeout_s=70))
say("the end")
hear()
"""
    open_to_all = Governance(mode=0o644)
    with shared.connect() as root:
        root.make_namespace("/all", 0o777)
        for position in (0, 2, 4):
            told = Descriptive(producer="ann", session="s", position=position)
            text = f"The kitten was on the sofa {position} times."
            root.write(f"/all/{position}", text, descriptive=told, governance=open_to_all)
        settle(root)
        before = answers(shared, look)
        for position in (1, 3, 5):
            told = Descriptive(producer="Zenobia", session="s", position=position, event_time_ns=5)
            root.write(f"/all/{position}", "kitten sofa pets May", descriptive=told)
        settle(root)
        assert len(root.search("kitten", under="/all")) == 6
        assert answers(shared, look) == before
        root.set_header("/all/1", governance=open_to_all)
        assert answers(shared, look) != before
        for stat in list(root.list("/all")):
            root.unlink(stat.name)
        root.remove_namespace("/all")


def answers(daemon: Daemon, program: str) -> list[str]:
    """All that a stranger's process says."""
    said: list[str] = []
    with Actor(daemon, program, OTHER, (OTHER,)) as actor:
        while (word := actor.hear()) != "the end":
            said.append(word)
        actor.tell()
        actor.end()
    return said


# -- whatever is asked -----------------------------------------------------------------------------

QUERIES = [
    "",
    " ",
    '"',
    'kitten" OR "',
    "kitten NEAR(sofa, 2)",
    "kit*",
    "text: kitten",
    "{text} : kitten",
    "kitten AND NOT sofa",
    "^kitten",
    "\x00\x01\x02\xff",
    "🐱 😻",
    "קיטי שלום",
    "'; DROP TABLE document; --",
    "%s %n $(reboot) {0} {{}}",
    "last May, two days before the trip on 31 February 99999",
    "kitten " * 1400,
]


@pytest.mark.parametrize("query", QUERIES)
def test_whatever_is_asked_is_text(client: libmem.Client, query: str) -> None:
    client.write("/t/kitten", "A kitten on a sofa.")
    settle(client)
    for mode in SearchMode:
        found = names(client, query, mode=mode)
        assert found in ([], ["/t/kitten"])
        if "kitten" in query and mode is SearchMode.WORDS:
            assert found == ["/t/kitten"]


def test_a_query_that_is_too_long_is_refused(client: libmem.Client) -> None:
    with pytest.raises(MemError) as caught:
        client.search("kitten " * 150_000)
    assert caught.value.errno is Errno.EINVAL


@pytest.mark.parametrize("k", [0, -1, 10**9])
def test_an_impossible_number_of_hits_is_refused(client: libmem.Client, k: int) -> None:
    with pytest.raises(MemError) as caught:
        client.search("kitten", k=k)
    assert caught.value.errno is Errno.EINVAL


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("子猫がソファで寝ている。", "子猫"),
        ("小猫在沙发上睡觉。", "沙发"),
        ("고양이가 소파에서 잔다.", "소파에서"),
        ("القطة نائمة على الأريكة", "الأريكة"),
        ("חתול ישן על הספה", "הספה"),
        ("Le chaton dort sur le canapé 🐱.", "canape"),
    ],
)
def test_texts_of_any_script_are_found_by_their_own_words(
    client: libmem.Client, text: str, word: str
) -> None:
    client.write("/t/it", text)
    client.write("/t/other", "Something else entirely.")
    settle(client)
    assert best(client, word) == "/t/it"
    assert names(client, word, mode=SearchMode.WORDS) == ["/t/it"]


def test_a_large_document_stops_nobody(client: libmem.Client) -> None:
    page = "All work and no play makes a dull page of words, one after another. " * 30
    text = (page + "\n") * 5000 + "xylophone"  # 10 MB; what is behind 8 MiB is not indexed
    with client.create("/t/large", len(text), type=CubeType.PLAINTEXT) as fill:
        fill.copy_in(text.encode())
        fill.seal()
    client.write("/t/small", "A xylophone is an instrument.")
    assert names(client, "xylophone", mode=SearchMode.WORDS) == ["/t/small"]
    assert names(client, "dull page", mode=SearchMode.WORDS) == ["/t/large"]
    # The small one's vector does not wait for the thousands of the large one.
    eventually(
        lambda: names(client, "musical equipment", mode=SearchMode.MEANING)[:1] == ["/t/small"],
        "the small text is found by meaning",
    )
    assert client.info().recall.waiting > 0
    client.unlink("/t/large")
    settle(client)


def test_a_thousand_writes_at_once_are_all_found(client: libmem.Client) -> None:
    calls = [WriteCube(f"/t/{n:04}", f"Item {n} is a w{n}x.".encode()) for n in range(1000)]
    client.batch(calls)
    for number in (0, 500, 999):
        assert names(client, f"w{number}x", mode=SearchMode.WORDS) == [f"/t/{number:04}"]
    settle(client)
    recall = client.info().recall
    assert (recall.waiting, recall.problem) == (0, "")

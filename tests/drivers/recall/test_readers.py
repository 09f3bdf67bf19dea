"""What a caller may not read leaves no trace in what it is answered."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from libmem.abi.index import IndexDocument, IndexFacets, IndexHit, IndexQuestion
from libmem.abi.structs import SearchMode, Understood
from memosd.drivers.recall.index import RecallIndex
from tests.drivers.recall.lexicon import document, embed_all, search, vectors

DAY_NS = 86_400 * 10**9
WORDS = ["heron", "stork", "otter", "Anna", "trip", "who?"]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
made = st.builds(
    IndexFacets,
    producer=st.sampled_from(["", "Anna", "Ben", "Mallory"]),
    session=st.sampled_from(["", "s"]),
    position=st.integers(0, 4),
    event_time_ns=st.integers(0, 5).map(lambda day: day * 30 * DAY_NS),
)
QUERIES = [
    "What did Anna say about the heron?",
    "otter, stork in March",
    "who was it two days before the trip",
    "what did Mallory do last month",
]


@given(
    mine=st.lists(st.tuples(texts, made, st.sampled_from([1, 3])), min_size=1, max_size=8),
    theirs=st.lists(st.tuples(texts, made, st.integers(0, 8)), max_size=12),
    query=st.sampled_from(QUERIES),
    mode=st.sampled_from(list(SearchMode)),
    has_vector=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_what_may_not_be_read_leaves_no_trace(
    mine: list[tuple[str, IndexFacets, int]],
    theirs: list[tuple[str, IndexFacets, int]],
    query: str,
    mode: SearchMode,
    has_vector: bool,
) -> None:
    """Hits, scores, signals, snippets, neighbours and what was understood are equal, bit by bit."""
    ours = [made_document(f"m{at}", *each) for at, each in enumerate(mine)]
    mixed = list(ours)
    for at, (text, facets, place) in enumerate(theirs):
        mixed.insert(min(place, len(mixed)), made_document(f"t{at}", text, facets, 2))
    question = IndexQuestion(
        query, {1: ""}, 5, may_read=lambda owner, _: owner != (2, 2), mode=mode, beside=1
    )
    assert answers(mixed, question, has_vector) == answers(ours, question, has_vector)


def made_document(cube: str, text: str, facets: IndexFacets, uid: int) -> IndexDocument:
    return IndexDocument(1, cube.encode(), 1, f"/n/{cube}", text, facets._replace(owner=(uid, uid)))


def answers(
    documents: Sequence[IndexDocument], question: IndexQuestion, has_vector: bool
) -> tuple[Understood, list[IndexHit]]:
    with TemporaryDirectory() as folder:
        index = RecallIndex(Path(folder) / "index.db")
        index.open()
        for at, each in enumerate(documents):
            index.apply(at, [each], [])
        embed_all(index)
        plan = index.plan(question)
        index.match(plan)
        hits = index.rank(plan, vectors(plan.understood.text, index) if has_vector else None)
        index.close()
        return plan.understood, hits


def test_a_change_of_mode_is_heeded_by_a_search_under_way(index: RecallIndex) -> None:
    mine = document("mine", "heron", owner=(1, 1))
    theirs = document("theirs", "heron", owner=(2, 2), mode=0o644)
    index.apply(1, [mine, theirs], [])

    def may_read(owner: tuple[int, int], mode: int) -> bool:
        return owner == (1, 1) or bool(mode & 0o004)

    plan = index.plan(IndexQuestion("heron", {1: ""}, 5, may_read=may_read))
    index.match(plan)
    closed = theirs.facets._replace(mode=0o600)
    index.apply(2, [replace_facets(theirs, closed), document("late", "heron")], [])
    assert [hit.id for hit in index.rank(plan, None)] == [b"mine"]


def replace_facets(document: IndexDocument, facets: IndexFacets) -> IndexDocument:
    return document._replace(facets=facets)


def test_cubes_of_several_owners_compare(index: RecallIndex) -> None:
    """Alone among its owner's, a cube's words would weigh next to nothing: each is in all."""
    many = [document(f"m{n}", f"stork number {n}", owner=(1, 1)) for n in range(20)]
    index.apply(1, [*many, document("alone", "a heron", owner=(2, 2))], [])
    for mode in (SearchMode.HYBRID, SearchMode.WORDS):
        assert next(iter(search(index, "heron stork", mode=mode))) == "alone"

"""An index whose file was damaged after it was written: it says so, and begins anew."""

import random
from pathlib import Path

import pytest

from libmem.abi.errors import Errno, MemError
from libmem.abi.index import IndexQuestion
from libmem.abi.structs import SearchMode
from memosd.drivers.recall.index import RecallIndex
from tests.drivers.memory import raises
from tests.drivers.recall.lexicon import ask, document, embed_all, found, ids, vectors, write


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE piece SET pieces = 7",
        "UPDATE piece SET pieces = 'abc'",
        "UPDATE piece SET pieces = x'00'",
        "UPDATE passage SET text = x'ff'",
        "DELETE FROM passage",
        "DROP TABLE piece",
        "DROP TABLE words_1",
    ],
)
def test_whatever_rows_set_off_that_nobody_wrote_is_damage(index: RecallIndex, change: str) -> None:
    index.apply(41, [document("a", "heron. stork.")], [])
    embed_all(index)
    query = vectors("heron", index)._replace(model=index.counts.model)
    assert index._session is not None
    index._session.db.execute(change)
    with raises(Errno.ECORRUPT):
        ask(index, IndexQuestion("heron", {1: ""}, 10), query)
    assert index.open() == 0
    write(index, a="heron")
    assert ids(index, "heron") == ["a"]


def test_what_a_new_file_sets_off_as_well_is_no_damage(
    index: RecallIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise IndexError

    monkeypatch.setattr("memosd.drivers.recall.search.by_words", fault)
    write(index, a="heron")
    with raises(Errno.ECORRUPT):
        found(index, "heron")
    assert index.open() == 0
    write(index, a="heron")
    for _ in range(2):
        with pytest.raises(IndexError):
            found(index, "heron")
    monkeypatch.undo()
    assert ids(index, "heron") == ["a"], "nothing was discarded"


def make_small(path: Path) -> bytes:
    """The file of a small index that has a bit of everything."""
    index = RecallIndex(path)
    index.open()
    source = random.Random(3)
    for start in (0, 4, 8):
        batch = [
            document(
                f"c{n}",
                f"Heron. Stork. {' '.join(f'w{source.randrange(50)}' for _ in range(30))}",
                namespace=1 + n % 2,
                producer=f"p{n % 3}",
                session=f"s{n % 2}",
                position=n,
                event_time_ns=n * 10**17,
            )
            for n in range(start, start + 4)
        ]
        index.apply(start + 1, batch, [])
    embed_all(index)
    index.close()
    return path.read_bytes()


def use_all(index: RecallIndex) -> None:
    """Every kind of search and change."""
    query = vectors("heron", index)._replace(model=index.counts.model)
    for mode in SearchMode:
        where = {1: "", 2: "/ns2"}
        ask(
            index, IndexQuestion("heron w5 stork p1 in 1970", where, 10, mode=mode, beside=2), query
        )
    index.apply(100, [document("c1", "another heron"), document("new", "a heron")], [b"c2"])
    waiting = index.waiting(10, 1 << 20, set())
    index.keep({each.number: query for each in waiting})


def test_a_byte_that_flips_anywhere_is_survived_or_discarded(path: Path) -> None:
    content = make_small(path)
    source = random.Random(1)
    damaged = 0
    for _ in range(300):
        at = source.randrange(len(content))
        flipped = content[at] ^ source.randrange(1, 256)
        path.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
        index = RecallIndex(path)
        is_whole, errno = True, Errno.ECORRUPT
        try:
            is_whole = index.open() > 0
            use_all(index)
        except MemError as error:
            is_whole, errno = False, error.errno
            assert index.open() == 0
            use_all(index)
        assert errno is Errno.ECORRUPT, (at, flipped)
        index.close()
        damaged += not is_whole
    assert damaged > 5, "nothing was tried"

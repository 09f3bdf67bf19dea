"""What is left after a removal, a crash, a damaged file."""

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from libmem.abi import failpoints
from libmem.abi.errors import Errno
from libmem.abi.index import IndexDocument
from memosd.drivers.recall.index import RecallIndex
from tests.drivers.memory import python, raises
from tests.drivers.recall.lexicon import document, found, ids, stored, write

# -- residue -----------------------------------------------------------------------------------


def secrets(count: int) -> list[str]:
    """Words that occur nowhere else, each in every eight letters of it."""
    source = random.Random(11)
    return ["".join(source.choices("bcdfghjklmnpqrstvwxz", k=16)) for _ in range(count)]


def traces(path: Path, words: list[str]) -> list[str]:
    """Eight letters in a row of any of the words, wherever they lie in the files."""
    content = stored(path)
    pieces = [word[at : at + 8] for word in words for at in range(len(word) - 7)]
    return [piece for piece in pieces if piece.encode() in content]


def fill(index: RecallIndex, words: list[str]) -> None:
    """One cube for each word, among so much else that the words' postings fill many pages."""
    source = random.Random(5)
    for start in range(0, len(words), 20):
        batch = []
        for at in range(start, min(start + 20, len(words))):
            filler = " ".join(f"w{source.randrange(3000)}" for _ in range(60))
            batch.append(document(f"{at}", f"{filler} {words[at]} {filler}"))
        index.apply(start, batch, [])


@pytest.mark.parametrize("removed", [3, 60, 199])  # posting by posting; by rewriting
def test_a_removed_text_leaves_no_trace(index: RecallIndex, path: Path, removed: int) -> None:
    words = secrets(200)
    fill(index, words)
    assert len(traces(path, words[:removed])) >= 9 * removed
    index.apply(999, [], [str(at).encode() for at in range(removed)])
    assert traces(path, words[:removed]) == []
    assert ids(index, words[-1]) == ["199"]
    index.close()
    assert traces(path, words[:removed]) == []


@given(st.integers(0, 2**32))
@example(225)  # these leave copies in the middle of pages unless scrub.py looks there
@example(238)
@settings(max_examples=10, deadline=None)
def test_no_order_of_removals_leaves_a_trace(seed: int) -> None:
    """Deletions make SQLite move rows between pages, which leaves copies; each seed other ones."""
    source = random.Random(seed)
    words = secrets(100)
    order = source.sample(range(100), 60)
    with TemporaryDirectory() as folder:
        index = RecallIndex(Path(folder) / "index.db")
        index.open()
        fill(index, words)
        start = 0
        while start < len(order):
            batch = order[start : start + source.choice([1, 2, 20])]
            start += len(batch)
            rewritten = [document(f"{at}", f"another text {at} " * 20) for at in batch[::3]]
            index.apply(start, rewritten, [f"{at}".encode() for at in batch])
        index.apply(start, [], [f"{at}".encode() for at in order])
        assert traces(Path(folder) / "index.db", [words[at] for at in order]) == []
        index.close()


def test_an_older_text_goes_with_its_cube(index: RecallIndex, path: Path) -> None:
    words = secrets(60)
    fill(index, words)
    for version, text in enumerate(["another text", "a third"], 2):
        index.apply(1000, [document("7", text, version=version)], [])
    index.apply(1001, [], [b"7"])
    assert traces(path, [words[7]]) == []


def test_an_older_text_goes_with_its_version(index: RecallIndex, path: Path) -> None:
    words = secrets(60)
    fill(index, words)
    for stamp, number in enumerate([7, 8], 1000):
        index.apply(stamp, [document(f"{number}", "another text", version=2)], [])
    index.apply(1002, [document("7", "another text", version=2)], [b"7"])
    assert traces(path, [words[7]]) == []
    assert "7" in ids(index, "another")


def test_the_last_cube_of_a_namespace_leaves_no_trace(index: RecallIndex, path: Path) -> None:
    words = secrets(1)
    write(index, a=words[0])
    index.apply(2, [], [b"a"])
    assert traces(path, words) == []


def test_erasing_works_after_a_rewrite_that_failed(index: RecallIndex, path: Path) -> None:
    words = secrets(100)
    fill(index, words)
    failpoints.arm("index.commit.before=eio")
    with raises(Errno.EIO):
        index.apply(1000, [], [str(at).encode() for at in range(50)])
    failpoints.disarm()
    assert ids(index, words[3]) == ["3"]
    index.apply(1000, [], [b"3"])
    assert traces(path, [words[3]]) == []


def test_erasing_is_finished_after_a_crash(path: Path) -> None:
    index = RecallIndex(path)
    index.open()
    words = secrets(30)
    fill(index, words)
    index.close()
    program = (
        "import sys; from pathlib import Path; "
        "from memosd.drivers.recall.index import RecallIndex\n"
        "index = RecallIndex(Path(sys.argv[1])); index.open(); index.apply(2, [], [b'7'])"
    )
    crashed = python(program, str(path), failpoints="index.commit.after=exit")
    assert crashed.returncode == failpoints.EXIT_STATUS, crashed.stderr
    assert traces(path, [words[7]]) != []
    assert index.open() == 2
    assert traces(path, [words[7]]) == []
    index.close()


# -- crashes and failures ----------------------------------------------------------------------

_APPLY = """
import sys
from pathlib import Path
from libmem.abi.index import IndexDocument
from memosd.drivers.recall.index import RecallIndex
index = RecallIndex(Path(sys.argv[1]))
index.open()
for stamp in (5, 6):
    documents = [IndexDocument(1, b"%d" % n, stamp, f"/n/{n}", f"heron{stamp}") for n in range(50)]
    index.apply(stamp, documents, [b"old"])
    print("applied", stamp, flush=True)
"""


@pytest.mark.parametrize(
    ("point", "stamp"), [("index.commit.before=exit@2", 5), ("index.commit.after=exit@2", 6)]
)
def test_a_crash_leaves_a_batch_whole_or_absent(path: Path, point: str, stamp: int) -> None:
    crashed = python(_APPLY, str(path), failpoints=point)
    assert crashed.returncode == failpoints.EXIT_STATUS, crashed.stderr
    assert crashed.stdout == "applied 5\n"
    index = RecallIndex(path)
    assert index.open() == stamp
    assert len(ids(index, f"heron{stamp}")) == 50
    assert len(ids(index, "heron5 heron6")) == 50
    index.close()


@pytest.mark.parametrize(("action", "errno"), [("enospc", Errno.ENOSPC), ("eio", Errno.EIO)])
def test_a_failed_apply_changes_nothing(index: RecallIndex, action: str, errno: Errno) -> None:
    index.apply(1, [document("a", "heron")], [])
    failpoints.arm(f"index.commit.before={action}@1")
    with raises(errno):
        index.apply(2, [document("b", "heron", namespace=2)], [b"a"])
    assert ids(index, "heron") == ["a"]
    index.apply(2, [document("b", "heron", namespace=2)], [b"a"])
    assert ids(index, "heron") == ["b"]
    assert index.open() == 2


def test_memory_that_cannot_follow_a_commit_is_read_again(
    index: RecallIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.apply(1, [document("a", "heron")], [])
    with monkeypatch.context() as patched:
        patched.setattr("memosd.drivers.recall.columns.Columns.append", fail)
        with pytest.raises(MemoryError):
            index.apply(2, [document("b", "heron")], [b"a"])
    with raises(Errno.ESTALE):
        ids(index, "heron")
    assert index.open() == 2, "it was committed"
    assert ids(index, "heron") == ["b"]


def fail(*_: object) -> None:
    raise MemoryError


def test_a_log_that_found_no_room_is_emptied_later(
    index: RecallIndex, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(Errno.ENOSPC, "no room")

    words = secrets(30)
    fill(index, words)
    with monkeypatch.context() as full:
        full.setattr("memosd.drivers.recall.index.empty_log", no_room)
        with raises(Errno.ENOSPC):
            index.apply(1000, [], [b"7"])
        assert ids(index, words[7]) == []
        assert index.open() == 1000
    assert traces(path, [words[7]]) != []
    index.apply(1001, [document("new", "heron")], [])
    assert traces(path, [words[7]]) == []


# -- files that are no good --------------------------------------------------------------------


def test_the_stamp_and_the_texts_survive_closing(index: RecallIndex, path: Path) -> None:
    index.apply(41, [document("a", "heron")], [])
    index.close()
    again = RecallIndex(path)
    assert again.open() == 41
    assert ids(again, "heron") == ["a"]
    again.close()


def spoil_nothing_to_read(content: bytes) -> bytes:
    return b""


def spoil_not_a_database(content: bytes) -> bytes:
    return b"this is a letter, not a database\n" * 400


def spoil_head(content: bytes) -> bytes:
    return os.urandom(100) + content[100:]


def spoil_schema_page(content: bytes) -> bytes:
    return content[:100] + os.urandom(3996) + content[4096:]


def spoil_end(content: bytes) -> bytes:
    return content[:4096]


def spoil_program(content: bytes) -> bytes:
    return content[:68] + b"else" + content[72:]


def spoil_schema_version(content: bytes) -> bytes:
    return content[:60] + (99).to_bytes(4, "big") + content[64:]


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_nothing_to_read,
        spoil_not_a_database,
        spoil_head,
        spoil_schema_page,
        spoil_end,
        spoil_program,
        spoil_schema_version,
    ],
)
def test_a_file_that_is_no_good_is_discarded(
    index: RecallIndex, path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    index.apply(41, [document("a", "heron")], [])
    index.close()
    path.write_bytes(spoil(path.read_bytes()))
    assert index.open() == 0
    assert ids(index, "heron") == []
    write(index, b="heron")
    assert ids(index, "heron") == ["b"]


def test_a_database_without_our_tables_is_discarded(index: RecallIndex, path: Path) -> None:
    assert index._session is not None
    index._session.db.execute("DROP TABLE state")
    index.close()
    assert index.open() == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE document SET name = CAST(x'ff' AS TEXT)",
        "UPDATE document SET type = 'plaintexd'",
        "UPDATE document SET lengths = x'00'",
        "UPDATE document SET session = 7, position = 'x'",
        "UPDATE document SET audience = 99",
        "UPDATE document SET priority = 1 << 40",
    ],
)
def test_rows_that_nobody_wrote_are_discarded(index: RecallIndex, change: str) -> None:
    index.apply(41, [document("a", "heron")], [])
    assert index._session is not None
    index._session.db.execute(change)
    assert index.open() == 0
    write(index, a="heron")
    assert ids(index, "heron") == ["a"]


def test_a_text_that_is_none_is_damage(index: RecallIndex) -> None:
    index.apply(41, [document("a", "heron")], [])
    assert index._session is not None
    index._session.db.execute("UPDATE passage SET text = CAST(x'68ff' AS TEXT)")
    with raises(Errno.ECORRUPT):
        found(index, "heron")
    assert index.open() == 0
    write(index, a="heron")
    assert ids(index, "heron") == ["a"]


def test_numbers_that_contradict_each_other_are_damage(index: RecallIndex) -> None:
    index.apply(41, [document("a", "heron")], [])
    assert index._session is not None
    index._session.db.execute("UPDATE state SET next = 1")
    index._session.rows.reload()
    with raises(Errno.ECORRUPT):
        index.apply(42, [document("b", "heron", namespace=2)], [])
    assert index.open() == 0


def test_damage_found_later_is_remembered_until_it_is_opened(
    index: RecallIndex, path: Path
) -> None:
    for start in range(0, 2000, 100):
        index.apply(
            start + 1,
            [
                IndexDocument(1, b"%d" % n, 1, f"/n/{n}", f"heron w{n} " * 30)
                for n in range(start, start + 100)
            ],
            [],
        )
    index.close()
    assert index.open() > 0
    content = path.read_bytes()
    path.write_bytes(content[: 4096 * 3] + os.urandom(len(content) - 4096 * 3))
    with raises(Errno.ECORRUPT):
        found(index, "heron", {1: ""}, 10)
    with raises(Errno.ECORRUPT):
        index.apply(9999, [document("a", "heron")], [])
    assert index.open() == 0
    write(index, a="heron")
    assert ids(index, "heron") == ["a"]


def test_a_path_that_cannot_be_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "index.db").mkdir()
    with raises(Errno.EIO):
        RecallIndex(tmp_path / "index.db").open()
    with raises(Errno.EIO):
        RecallIndex(tmp_path / "missing" / "index.db").open()


def test_only_the_owner_can_read_the_files(index: RecallIndex, path: Path) -> None:
    write(index, a="heron")
    files = list(path.parent.iterdir())
    assert len(files) >= 2
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)

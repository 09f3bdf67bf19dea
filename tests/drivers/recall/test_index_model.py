"""Random writes, removals, new names and rights, vectors and crashes against a dictionary."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import apsw
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from libmem.abi import failpoints
from libmem.abi.errors import MemError
from libmem.abi.index import (
    IndexDocument,
    IndexFacets,
    IndexFilter,
    IndexQuestion,
    IndexVectors,
)
from libmem.abi.structs import CubeType, SearchMode
from memosd.drivers.recall.documents import READ_BITS
from memosd.drivers.recall.index import RecallIndex
from tests.drivers.recall.lexicon import ask, vectors

SHM = "/dev/shm"
WORDS = ["heron", "stork", "otter", "Ärger", "机器", "naïve", "running"]
CUBES = [bytes([n]) * 16 for n in range(6)]
FOLDERS = ["/n/a", "/n/a/b", "/n/ab", "/n/c"]
OWNERS = [(1, 1), (2, 2)]
PRODUCERS = ["", "Anna", "小明"]
MODELS = ["a" * 64, "b" * 64]

texts = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
# Some texts are long enough for several passages.
long_texts = st.tuples(texts, texts).map(lambda pair: pair[0] + " filler\n" * 400 + pair[1])
facets = st.builds(
    IndexFacets,
    owner=st.sampled_from(OWNERS),
    mode=st.sampled_from([0o600, 0o640, 0o644]),
    producer=st.sampled_from(PRODUCERS),
    session=st.sampled_from(["", "one", "two"]),
    position=st.integers(0, 2),
    event_time_ns=st.sampled_from([0, 10, 20]),
    valid_from_ns=st.sampled_from([0, 5]),
    valid_to_ns=st.sampled_from([0, 15]),
    type=st.sampled_from([CubeType.PLAINTEXT, CubeType.BLOB]),
    semantic_type=st.sampled_from(["", "fact"]),
    # The table's are smaller; what no column could hold must not stop the index.
    written_ns=st.integers(),
    priority=st.integers(),
)
documents = st.builds(
    IndexDocument,
    namespace=st.integers(1, 3),
    id=st.sampled_from(CUBES),
    version=st.integers(1, 99),
    name=st.builds("{}/{}".format, st.sampled_from(FOLDERS), st.integers(0, 3)),
    text=texts | long_texts,
    facets=facets,
)
filters = st.builds(
    IndexFilter,
    types=st.sampled_from([(), (CubeType.BLOB,)]),
    semantic_types=st.sampled_from([(), ("fact", "event")]),
    producers=st.sampled_from([(), ("Anna",), ("小明", "nobody")]),
    sessions=st.sampled_from([(), ("one",)]),
    event_from_ns=st.sampled_from([0, 10, 15]),
    event_to_ns=st.sampled_from([0, 15]),
    valid_at_ns=st.sampled_from([0, 3, 10, 15]),
)


def asked(word: str, folder: str, reader: tuple[int, int], wanted: IndexFilter) -> IndexQuestion:
    """Of two of three namespaces, by somebody who may not read everything."""

    def may_read(owner: tuple[int, int], mode: int) -> bool:
        return owner == reader or bool(mode & 0o004)

    return IndexQuestion(word, {1: folder, 3: folder}, 100, may_read=may_read, filter=wanted)


class IndexMachine(RuleBasedStateMachine):
    """The index says of every word in every subtree what the dictionary says."""

    @initialize()
    def start(self) -> None:
        # Hundreds of commits wait for the disk: in memory where there is such a folder.
        self.folder = tempfile.TemporaryDirectory(dir=SHM if Path(SHM).is_dir() else None)
        self.worn_early = mock.patch("memosd.drivers.recall.columns._WORN_ROWS", 2)
        self.worn_early.start()
        self.path = Path(self.folder.name) / "index.db"
        self.index = RecallIndex(self.path)
        assert self.index.open() == 0
        self.model: dict[bytes, IndexDocument] = {}
        self.stamp = 0

    @rule(batch=st.lists(documents, max_size=5), removed=st.lists(st.sampled_from(CUBES)))
    def apply(self, batch: list[IndexDocument], removed: list[bytes]) -> None:
        self.stamp += 1
        self.index.apply(self.stamp, batch, iter(removed))
        for cube in removed:
            self.model.pop(cube, None)
        self.model.update({document.id: document for document in batch})

    @rule(batch=st.lists(documents, max_size=5), removed=st.lists(st.sampled_from(CUBES)))
    def fail_to_apply(self, batch: list[IndexDocument], removed: list[bytes]) -> None:
        failpoints.arm("index.commit.before=eio@1")
        try:
            self.index.apply(99, batch, iter(removed))
        except MemError:
            return
        finally:
            failpoints.disarm()
        raise AssertionError("it did not fail")

    @rule(new=st.sampled_from(FOLDERS))
    def rename_all(self, new: str) -> None:
        self.alter_all(lambda document: document._replace(name=f"{new}/moved"))

    @rule(owner=st.sampled_from(OWNERS), mode=st.sampled_from([0o600, 0o644]))
    def hand_all_over(self, owner: tuple[int, int], mode: int) -> None:
        """The texts stay; who may read them does not."""
        self.alter_all(
            lambda document: document._replace(
                facets=document.facets._replace(owner=owner, mode=mode)
            )
        )

    def alter_all(self, change: Callable[[IndexDocument], IndexDocument]) -> None:
        self.apply([change(document) for document in self.model.values()], [])

    @rule(count=st.integers(1, 20))
    def embed(self, count: int) -> None:
        """As a worker would, whatever becomes of it."""
        waiting = self.index.waiting(count, 10_000, set())
        self.index.keep({each.number: vectors(each.text, self.index) for each in waiting})

    @rule(name=st.sampled_from(MODELS))
    def use_model(self, name: str) -> None:
        self.index.use_model(name)

    @rule()
    def reopen(self) -> None:
        before = self.memory()
        self.index.close()
        assert self.index.open() == self.stamp
        assert self.memory() == before

    @rule()
    def lose_the_process(self) -> None:
        """Without `close` the log stays as it is, as after a crash."""
        before = self.memory()
        self.index._let_go()
        assert self.index.open() == self.stamp
        assert self.memory() == before

    @rule(
        word=st.sampled_from(WORDS),
        folder=st.sampled_from([*FOLDERS, ""]),
        reader=st.sampled_from(OWNERS),
        wanted=filters,
    )
    def search(self, word: str, folder: str, reader: tuple[int, int], wanted: IndexFilter) -> None:
        question = asked(word, folder, reader, wanted)._replace(mode=SearchMode.WORDS)
        assert self.hits(question, None) == self.with_word(word, self.allowed(question))

    @rule(
        word=st.sampled_from(WORDS),
        folder=st.sampled_from([*FOLDERS, ""]),
        reader=st.sampled_from(OWNERS),
        wanted=filters,
    )
    def search_by_meaning(
        self, word: str, folder: str, reader: tuple[int, int], wanted: IndexFilter
    ) -> None:
        """Whatever ranks, all that share the word are found, and nothing else than is allowed."""
        question = asked(word, folder, reader, wanted)
        allowed = self.allowed(question)
        vector = vectors(word, self.index) if self.index.counts.model else None
        found = self.hits(question, vector)
        assert self.with_word(word, allowed) <= found <= self.versions(allowed)
        if vector is not None:
            by_meaning = question._replace(mode=SearchMode.MEANING)
            assert self.hits(by_meaning, vector) <= self.versions(allowed)

    @rule()
    def begin_anew(self) -> None:
        self.index.clear()
        self.model.clear()
        self.stamp = 0

    def hits(self, question: IndexQuestion, vector: IndexVectors | None) -> set[tuple[bytes, int]]:
        return {(hit.id, hit.version) for hit in ask(self.index, question, vector)}

    def allowed(self, question: IndexQuestion) -> list[IndexDocument]:
        """What the dictionary says may be found, whatever it says."""
        return [
            known
            for known in self.model.values()
            if known.namespace in question.spaces
            and is_under(known.name, question.spaces[known.namespace])
            and question.may_read(known.facets.owner, known.facets.mode)
            and passes(known.facets, question.filter)
        ]

    @staticmethod
    def versions(documents: list[IndexDocument]) -> set[tuple[bytes, int]]:
        return {(known.id, known.version) for known in documents}

    def with_word(self, word: str, documents: list[IndexDocument]) -> set[tuple[bytes, int]]:
        """Those of them that have the word, or whose producer's name is it."""
        return self.versions(
            [known for known in documents if word in f"{known.text} {known.facets.producer}"]
        )

    @invariant()
    def counts_are_what_is_there(self) -> None:
        """They are kept as rows come and go; here they are taken from the file."""
        assert self.index._session is not None
        db = self.index._session.db
        passages = db.execute("SELECT count(*) FROM passage").get
        having = "SELECT passage FROM vector JOIN state USING (model)"
        sql = f"SELECT text FROM passage WHERE passage NOT IN ({having})"
        waiting = sum(bool(text.strip()) for (text,) in db.execute(sql))
        assert self.index.counts[:2] == (passages, waiting)

    @invariant()
    def nothing_is_left_over(self) -> None:
        """Rows, passages and FTS5 tables agree with each other; call it the index's fsck."""
        assert self.index._session is not None
        db = self.index._session.db
        assert db.pragma("integrity_check") == "ok"
        assert db.execute("SELECT count(*) FROM document").get == len(self.model)
        passages = db.execute("SELECT coalesce(sum(passages), 0) FROM document").get
        assert db.execute("SELECT count(*) FROM passage").get == passages
        audiences = self.index._session.rows.audiences
        assert sorted(audiences.values()) == sorted(
            {
                (known.namespace, known.facets.owner, known.facets.mode & READ_BITS)
                for known in self.model.values()
            }
        )
        rows = 0
        for audience in audiences:
            words = f"words_{audience}"
            assert_consistent(db, words)
            rows += int(db.execute(f"SELECT count(*) FROM {words}_docsize").get)
        assert rows == passages
        for table in ("vector", "piece"):
            sql = f"SELECT count(*) FROM {table} WHERE passage NOT IN (SELECT passage FROM passage)"
            assert db.execute(sql).get == 0

    def memory(self) -> dict[int, list[tuple[object, ...]]]:
        """What is kept in memory, in words; the counts under 0."""
        assert self.index._session is not None
        said: dict[int, list[tuple[object, ...]]] = {0: [self.index.counts]}
        for namespace, columns in self.index._session.catalogue.spaces.items():
            rows = np.flatnonzero(columns["is_alive"])
            before, after, _ = columns.links(columns["is_alive"])
            number = np.append(columns["number"], -1)
            names = {
                name: [*interned.numbers, ""]
                for name, interned in (
                    ("producer", columns.producers),
                    ("session", columns.sessions),
                    ("folder", columns.folders),
                )
            }
            said[namespace] = [
                (
                    *(int(columns[name][row]) for name in NUMBERS),
                    *(known[columns[name][row]] for name, known in names.items()),
                    int(number[before[row]]),
                    int(number[after[row]]),
                    columns.steps[row].tobytes() if columns["has_vector"][row] else b"",
                )
                for row in rows
            ]
        return said

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
            self.worn_early.stop()
            self.folder.cleanup()


NUMBERS = (
    *("number", "doc", "audience", "event_time_ns", "valid_from_ns", "valid_to_ns"),
    *("characters", "is_question", "is_first", "is_last", "has_vector"),
)


def is_under(name: str, folder: str) -> bool:
    return not folder or name == folder or name.startswith(folder + "/")


def passes(known: IndexFacets, wanted: IndexFilter) -> bool:
    happened = known.event_time_ns
    return (
        (not wanted.types or known.type in wanted.types)
        and (not wanted.semantic_types or known.semantic_type in wanted.semantic_types)
        and (not wanted.producers or known.producer in wanted.producers)
        and (not wanted.sessions or known.session in wanted.sessions)
        and (not (wanted.event_from_ns or wanted.event_to_ns) or happened != 0)
        and happened >= wanted.event_from_ns
        and (not wanted.event_to_ns or happened <= wanted.event_to_ns)
        and (not wanted.valid_at_ns or known.valid_from_ns <= wanted.valid_at_ns)
        and (
            not wanted.valid_at_ns
            or not known.valid_to_ns
            or known.valid_to_ns > wanted.valid_at_ns
        )
    )


def assert_consistent(db: apsw.Connection, words: str) -> None:
    db.execute(f"INSERT INTO {words} ({words}) VALUES ('integrity-check')")


IndexMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestIndexMachine = IndexMachine.TestCase

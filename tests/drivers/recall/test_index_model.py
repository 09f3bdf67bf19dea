"""Random writes, removals, renames and crashes against a dictionary."""

import tempfile
from pathlib import Path

import apsw
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from libmem.abi.index import IndexDocument
from memosd.drivers.recall.index import RecallIndex

WORDS = ["heron", "stork", "otter", "Ärger", "机器", "naïve", "running"]
CUBES = [bytes([n]) * 16 for n in range(6)]
FOLDERS = ["/n/a", "/n/a/b", "/n/ab", "/n/c"]

texts = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
# Some texts are long enough for several passages.
long_texts = st.tuples(texts, texts).map(lambda pair: pair[0] + " filler\n" * 400 + pair[1])
documents = st.builds(
    IndexDocument,
    namespace=st.integers(1, 3),
    id=st.sampled_from(CUBES),
    version=st.integers(1, 99),
    name=st.builds("{}/{}".format, st.sampled_from(FOLDERS), st.integers(0, 3)),
    text=texts | long_texts,
)


class IndexMachine(RuleBasedStateMachine):
    """The index says of every word in every subtree what the dictionary says."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
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

    @rule(new=st.sampled_from(FOLDERS))
    def rename_all(self, new: str) -> None:
        moved = [document._replace(name=f"{new}/moved") for document in self.model.values()]
        self.apply(moved, [])

    @rule()
    def reopen(self) -> None:
        self.index.close()
        assert self.index.open() == self.stamp

    @rule()
    def lose_the_process(self) -> None:
        """Without `close` the log stays as it is, as after a crash."""
        self.index._let_go()
        assert self.index.open() == self.stamp

    @rule(word=st.sampled_from(WORDS), folder=st.sampled_from([*FOLDERS, ""]))
    def search(self, word: str, folder: str) -> None:
        where = {1: folder, 3: folder}
        hits = {(hit.id, hit.version) for hit in found(self.index, word, where, 100)}
        assert hits == {
            (known.id, known.version)
            for known in self.model.values()
            if known.namespace in where and word in known.text and is_under(known.name, folder)
        }

    @invariant()
    def nothing_is_left_over(self) -> None:
        """Rows, passages and FTS5 tables agree with each other; call it the index's fsck."""
        assert self.index._session is not None
        db = self.index._session.db
        assert db.pragma("integrity_check") == "ok"
        assert db.execute("SELECT count(*) FROM document").get == len(self.model)
        passages = db.execute("SELECT coalesce(sum(passages), 0) FROM document").get
        assert db.execute("SELECT count(*) FROM passage").get == passages
        namespaces = {known.namespace for known in self.model.values()}
        assert self.index._session.rows.namespaces == namespaces
        rows = 0
        for namespace in namespaces:
            words = f"words_{namespace}"
            assert_consistent(db, words)
            rows += int(db.execute(f"SELECT count(*) FROM {words}_docsize").get)
        assert rows == passages

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
            self.folder.cleanup()


def is_under(name: str, folder: str) -> bool:
    return not folder or name == folder or name.startswith(folder + "/")


def assert_consistent(db: apsw.Connection, words: str) -> None:
    db.execute(f"INSERT INTO {words} ({words}) VALUES ('integrity-check')")


IndexMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestIndexMachine = IndexMachine.TestCase

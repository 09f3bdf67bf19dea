"""What every store must do, the one in memory included: docs in memosd/kernel/ports.py."""

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from libmem.abi import failpoints
from libmem.abi.errors import Errno
from memosd.drivers.fake_store import FakeStore
from memosd.drivers.store import LmdbStore
from memosd.kernel.ports import Changes, Store
from tests.drivers.memory import raises

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

TABLES = ("cubes", "names")
Rows = dict[tuple[str, bytes], bytes]


class Kind:
    """A store as a test handles it: opened, made to fail, crashed and opened again."""

    def open(self, path: Path) -> Store:
        """An empty store."""
        raise NotImplementedError

    def crash(self, store: Store) -> Store:
        """What a new process finds after this one is gone."""
        raise NotImplementedError

    def fail(self, store: Store, step: str) -> None:
        """The next `stage` or `commit` meets a full disk."""
        raise NotImplementedError


class Lmdb(Kind):
    """The durable one; a crash is a close without a commit, since the commit is what counts."""

    def open(self, path: Path) -> Store:
        self.path = path / "table.mdb"
        return LmdbStore(self.path, TABLES, 1 << 24)

    def crash(self, store: Store) -> Store:
        store.close()
        return LmdbStore(self.path, TABLES, 1 << 24)

    def fail(self, store: Store, step: str) -> None:
        failpoints.disarm()
        failpoints.arm(
            {"stage": "store.stage", "commit": "store.commit.before"}[step] + "=enospc@1"
        )


class Fake(Kind):
    """The one in memory."""

    def open(self, path: Path) -> Store:
        return FakeStore(TABLES)

    def crash(self, store: Store) -> Store:
        assert isinstance(store, FakeStore)
        return store.reopen()

    def fail(self, store: Store, step: str) -> None:
        assert isinstance(store, FakeStore)
        plan = {"stage": store.fail_stage, "commit": store.fail_commit}[step]
        plan(Errno.ENOSPC)


KINDS: dict[str, Callable[[], Kind]] = {"lmdb": Lmdb, "fake": Fake}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind in turn."""
    return KINDS[request.param]()


@pytest.fixture
def store(kind: Kind, tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    opened = kind.open(tmp_path)
    yield opened
    opened.close()


def commit(store: Store, **rows: bytes | None) -> None:
    """Write rows of `cubes`, durable and settled."""
    store.stage({"cubes": {key.encode(): value for key, value in rows.items()}})()
    store.settle()


def test_an_empty_store(store: Store) -> None:
    assert store.get("cubes", b"a") is None
    assert list(store.scan("cubes", b"")) == []
    assert store.last_key("cubes") is None
    assert store.count("cubes") == 0


def test_reads_see_a_commit_once_it_is_settled(store: Store) -> None:
    commit(store, a=b"old")
    finish = store.stage({"cubes": {b"a": b"new", b"b": b"more"}})
    for step in ("staged", "committed"):
        if step == "committed":
            finish()
        assert store.get("cubes", b"a") == b"old"
        assert list(store.scan("cubes", b"")) == [(b"a", b"old")]
        assert store.count("cubes") == 1
        assert store.last_key("cubes") == b"a"
    store.settle()
    assert store.get("cubes", b"a") == b"new"
    assert list(store.scan("cubes", b"")) == [(b"a", b"new"), (b"b", b"more")]
    assert store.count("cubes") == 2
    assert store.last_key("cubes") == b"b"


def test_tables_are_apart(store: Store) -> None:
    store.stage({"cubes": {b"a": b"1"}, "names": {b"a": b"2"}})()
    store.settle()
    commit(store, a=None)
    assert store.get("cubes", b"a") is None
    assert store.get("names", b"a") == b"2"


def test_deleting_what_is_absent_is_no_error(store: Store) -> None:
    commit(store, a=None)
    assert store.count("cubes") == 0


def test_an_empty_value_is_a_value(store: Store) -> None:
    commit(store, a=b"")
    assert store.get("cubes", b"a") == b""
    assert list(store.scan("cubes", b"")) == [(b"a", b"")]


def test_keys_are_ordered_as_bytes(store: Store) -> None:
    keys = [b"\x00", b"\x00\x00", b"\x01", b"a", b"a\xff", b"b", b"\x80", b"\xff" * 480]
    store.stage({"cubes": {key: key for key in keys}})()
    store.settle()
    assert [key for key, _ in store.scan("cubes", b"\x00")] == keys
    assert [key for key, _ in store.scan("cubes", b"a\x00")] == keys[4:]
    assert list(store.scan("cubes", b"\xff" * 481)) == []
    assert store.last_key("cubes") == keys[-1]


def test_a_scan_ends_quietly_when_a_settle_passes_it_by(store: Store) -> None:
    commit(store, **{f"k{number}": b"v" for number in range(9)})
    scan = store.scan("cubes", b"k2")
    assert list(islice(scan, 2)) == [(b"k2", b"v"), (b"k3", b"v")]
    commit(store, k4=None)
    assert list(scan) == []
    assert [key for key, _ in store.scan("cubes", b"k4")] == [b"k5", b"k6", b"k7", b"k8"]


def test_one_commit_at_a_time(store: Store) -> None:
    finish = store.stage({"cubes": {b"a": b"1"}})
    with raises(Errno.EBUSY):
        store.stage({"cubes": {b"a": b"2"}})
    finish()
    with raises(Errno.EBUSY):  # done, but not settled
        store.stage({"cubes": {b"a": b"2"}})
    store.settle()
    assert store.get("cubes", b"a") == b"1"
    commit(store, a=b"2")


def test_what_was_committed_outlives_a_crash(kind: Kind, store: Store) -> None:
    commit(store, a=b"1")
    store.stage({"cubes": {b"b": b"2"}})()
    again = kind.crash(store)
    assert list(again.scan("cubes", b"")) == [(b"a", b"1"), (b"b", b"2")]
    again.close()


def test_what_was_only_staged_does_not(kind: Kind, store: Store) -> None:
    commit(store, a=b"1")
    store.stage({"cubes": {b"a": b"2", b"b": b"2"}})
    again = kind.crash(store)
    assert list(again.scan("cubes", b"")) == [(b"a", b"1")]
    commit(again, a=b"3")
    again.close()


@pytest.mark.parametrize("step", ["stage", "commit"])
def test_a_failure_leaves_nothing_and_the_store_usable(kind: Kind, store: Store, step: str) -> None:
    commit(store, a=b"1")
    kind.fail(store, step)
    with raises(Errno.ENOSPC):
        store.stage({"cubes": {b"a": b"2", b"b": b"2"}})()
    assert store.get("cubes", b"a") == b"1"
    store.settle()
    assert list(store.scan("cubes", b"")) == [(b"a", b"1")]
    commit(store, b=b"3")
    assert list(store.scan("cubes", b"")) == [(b"a", b"1"), (b"b", b"3")]
    again = kind.crash(store)
    assert list(again.scan("cubes", b"")) == [(b"a", b"1"), (b"b", b"3")]
    again.close()


def test_a_settle_gives_up_what_was_not_committed(store: Store) -> None:
    abandoned = store.stage({"cubes": {b"a": b"1"}})
    store.settle()
    with raises(Errno.EIO):
        abandoned()
    commit(store, b=b"2")
    assert list(store.scan("cubes", b"")) == [(b"b", b"2")]


def test_use_grows_and_shrinks_with_what_is_kept(store: Store) -> None:
    empty_bytes = store.used_bytes()
    commit(store, **{f"k{number:03}": bytes(1000) for number in range(500)})
    assert store.used_bytes() - empty_bytes > 500_000
    commit(store, **{f"k{number:03}": None for number in range(500)})
    assert store.used_bytes() - empty_bytes < 50_000


def test_closing_again_is_no_error(store: Store) -> None:
    store.stage({"cubes": {b"a": b"1"}})
    store.close()
    store.close()


def test_reads_go_on_while_another_thread_commits(store: Store) -> None:
    keys = [f"k{number:02}" for number in range(40)]
    commit(store, **dict.fromkeys(keys, b"0"))
    for generation in range(1, 60):
        # Of several sizes, so that pages are freed and taken again all the time.
        value = b"%d" % generation * (1 + generation * 37 % 1500)
        old = [(key.encode(), store.get("cubes", key.encode())) for key in keys]
        finish = store.stage({"cubes": {key.encode(): value for key in keys}})
        thread = threading.Thread(target=finish)
        thread.start()
        while thread.is_alive():
            assert list(store.scan("cubes", b"")) == old
        thread.join()
        assert [(key.encode(), store.get("cubes", key.encode())) for key in keys] == old
        store.settle()
        assert store.get("cubes", b"k39") == value


class Machine(RuleBasedStateMachine):
    """Any store against two dicts: what is durable, what is settled."""

    kind: Kind
    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.durable: Rows = {}
        self.settled: Rows = {}
        self.changes: Changes = {}
        self.finish: Callable[[], None] | None = None
        self.is_staged = False

    rows = st.dictionaries(
        st.binary(min_size=1, max_size=2),
        st.none() | st.binary(max_size=9) | st.builds(bytes, st.integers(2000, 9000)),
        max_size=6,
    )

    @precondition(lambda self: not self.is_staged)
    @rule(changes=st.dictionaries(st.sampled_from(TABLES), rows), is_failing=st.booleans())
    def stage(self, changes: Changes, is_failing: bool) -> None:
        if is_failing:
            self.kind.fail(self.store, "stage")
            with raises(Errno.ENOSPC):
                self.store.stage(changes)
            return
        self.changes, self.is_staged = changes, True
        self.finish = self.store.stage(changes)

    @precondition(lambda self: self.finish is not None)
    @rule(is_failing=st.booleans())
    def commit(self, is_failing: bool) -> None:
        assert self.finish is not None
        finish, self.finish = self.finish, None
        if is_failing:
            self.kind.fail(self.store, "commit")
            with raises(Errno.ENOSPC):
                finish()
            return
        finish()
        for table, rows in self.changes.items():
            for key, value in rows.items():
                self.durable.pop((table, key), None)
                if value is not None:
                    self.durable[table, key] = value

    @rule()
    def settle(self) -> None:
        self.store.settle()
        self.finish, self.is_staged = None, False
        self.settled = dict(self.durable)

    @rule()
    def crash(self) -> None:
        self.store = self.kind.crash(self.store)
        self.finish, self.is_staged = None, False
        self.settled = dict(self.durable)

    @rule(table=st.sampled_from(TABLES), start=st.binary(max_size=2))
    def scan(self, table: str, start: bytes) -> None:
        expected = sorted(
            (key, value)
            for (own, key), value in self.settled.items()
            if own == table and key >= start
        )
        assert list(self.store.scan(table, start)) == expected

    @invariant()
    def reads_are_the_settled_ones(self) -> None:
        for table in TABLES:
            keys = [key for own, key in self.settled if own == table]
            assert self.store.count(table) == len(keys)
            assert self.store.last_key(table) == max(keys, default=None)
            for key in keys:
                assert self.store.get(table, key) == self.settled[table, key]

    def teardown(self) -> None:
        self.store.close()


@pytest.mark.parametrize("name", KINDS)
def test_a_store_is_a_dict(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    class Run(Machine):
        def __init__(self) -> None:
            super().__init__()
            self.kind = KINDS[name]()
            self.store = self.kind.open(tmp_path_factory.mktemp("store"))

    run_state_machine_as_test(
        Run, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )

"""The ledger: what is read before it is durable, what waits for the disk, what a failure undoes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType, Durability
from memosd.drivers.fake_store import FakeStore
from memosd.kernel.ledger import Ledger
from tests.kernel.fakes import FakeIo
from tests.kernel.world import KIB, Client, World, batch_of

Answers = list[MemError | None]


@pytest.fixture
def store() -> FakeStore:
    """Two tables in memory."""
    return FakeStore(("a", "b"))


@pytest.fixture
def io() -> FakeIo:
    """Holds the commits."""
    return FakeIo()


@pytest.fixture
def ledger(store: FakeStore, io: FakeIo) -> Ledger:
    """Over that store."""
    return Ledger(store, io)


def answer(ledger: Ledger) -> Answers:
    """Wait for all that is pending, as an answer does."""
    told: Answers = []
    ledger.when_durable(ledger.pending_barrier(), told.append)
    return told


def rows(ledger: Ledger, start: bytes = b"", prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
    """A scan of table a."""
    return list(ledger.scan("a", start, prefix))


# -- reads ---------------------------------------------------------------------------------------


def test_a_change_is_read_at_once_and_over_both_generations(ledger: Ledger, io: FakeIo) -> None:
    ledger.put("a", b"1", b"one")
    ledger.put("a", b"2", b"two")
    assert ledger.get("a", b"1") == b"one"
    ledger.commit()
    ledger.put("a", b"2", b"newer")
    ledger.delete("a", b"1")
    ledger.put("a", b"3", b"three")
    assert ledger.get("a", b"1") is None
    assert ledger.get("a", b"2") == b"newer"
    assert rows(ledger) == [(b"2", b"newer"), (b"3", b"three")]
    io.finish("commit")
    assert ledger.get("a", b"1") is None
    assert rows(ledger) == [(b"2", b"newer"), (b"3", b"three")]


def test_nothing_is_visible_outside_before_its_commit(
    ledger: Ledger, store: FakeStore, io: FakeIo
) -> None:
    ledger.put("a", b"1", b"one")
    assert store.get("a", b"1") is None
    ledger.commit()
    assert store.get("a", b"1") is None
    io.find("commit").execute()
    assert store.get("a", b"1") is None, "reads see the last settled commit"
    io.jobs.pop().deliver()
    assert store.get("a", b"1") == b"one"


KEYS = st.binary(min_size=1, max_size=2)
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=2), max_size=8)


@settings(max_examples=200, deadline=None)
@given(settled=CHANGES, flushing=CHANGES, filling=CHANGES, start=KEYS, prefix=st.binary(max_size=1))
def test_a_scan_merges_what_is_settled_flushing_and_filling(
    settled: dict[bytes, bytes | None],
    flushing: dict[bytes, bytes | None],
    filling: dict[bytes, bytes | None],
    start: bytes,
    prefix: bytes,
) -> None:
    io = FakeIo()
    ledger = Ledger(FakeStore(("a", "b")), io)
    model: dict[bytes, bytes] = {}
    for generation in (settled, flushing, filling):
        for key, value in generation.items():
            if value is None:
                ledger.delete("a", key)
                model.pop(key, None)
            else:
                ledger.put("a", key, value)
                model[key] = value
            ledger.put("b", key, b"of another table")
        if generation is settled:
            ledger.commit()
            if io.jobs:
                io.finish("commit")
        elif generation is flushing:
            ledger.commit()
    wanted = sorted((k, v) for k, v in model.items() if k >= start and k.startswith(prefix))
    found = [row for row in ledger.scan("a", max(start, prefix), prefix) if row[0] >= start]
    assert found == wanted


# -- answers wait --------------------------------------------------------------------------------


def test_an_answer_waits_for_the_generation_it_read(ledger: Ledger, io: FakeIo) -> None:
    ledger.put("a", b"1", b"one")
    ledger.commit()
    ledger.begin_answer()
    ledger.get("a", b"1")
    barrier = ledger.barrier()
    ledger.put("a", b"2", b"two")
    told: Answers = []
    ledger.when_durable(barrier, told.append)
    assert told == []
    io.finish("commit")
    assert told == [None], "the generation of key 2 is none of its business"


def test_an_answer_that_read_nothing_pending_does_not_wait(ledger: Ledger) -> None:
    ledger.put("a", b"1", b"one")
    ledger.begin_answer()
    ledger.get("a", b"2")
    assert rows(ledger, b"2") == []
    assert ledger.barrier() == 0


def test_an_absence_that_is_not_durable_yet_is_waited_for(ledger: Ledger, io: FakeIo) -> None:
    ledger.put("a", b"1", b"one")
    ledger.commit()
    io.finish("commit")
    ledger.delete("a", b"1")
    ledger.begin_answer()
    assert ledger.get("a", b"1") is None
    assert ledger.barrier() != 0


def test_a_scan_over_a_commit_under_way_waits_for_that_commit_only(
    ledger: Ledger, io: FakeIo
) -> None:
    ledger.put("a", b"1", b"one")
    ledger.commit()
    ledger.begin_answer()
    assert rows(ledger) == [(b"1", b"one")]
    told: Answers = []
    ledger.when_durable(ledger.barrier(), told.append)
    io.finish("commit")
    assert told == [None], "nothing else will ever be committed here"


def test_changes_made_during_a_commit_go_with_the_next_one(ledger: Ledger, io: FakeIo) -> None:
    ledger.put("a", b"1", b"one")
    first = answer(ledger)
    ledger.commit()
    ledger.put("a", b"2", b"two")
    second = answer(ledger)
    ledger.commit()
    assert io.names() == ["commit"], "one at a time"
    io.finish("commit")
    assert (first, second) == ([None], [])
    ledger.commit()
    io.finish("commit")
    assert second == [None]
    assert ledger.is_idle


def test_all_changes_of_a_turn_share_one_commit(world: World, user: Client) -> None:
    before = world.store.commits
    pending = [user.start(c.WriteCube(name=f"/n/{n}", payload=b"x")) for n in range(50)]
    assert not any(call.is_answered for call in pending)
    world.settle()
    assert world.store.commits == before + 1
    assert {call.result().version for call in pending} == {1}


def test_a_reply_leaves_only_after_the_commit(world: World, user: Client) -> None:
    pending = user.start(c.WriteCube(name="/n/a", payload=b"x"))
    world.kernel.turn()
    world.io.find("commit").execute()
    assert not pending.is_answered
    world.settle()
    assert pending.result().version == 1


def test_a_reader_of_what_is_not_durable_waits_with_its_writer(world: World, user: Client) -> None:
    user.start(c.WriteCube(name="/n/a", payload=b"x"))
    world.kernel.turn()
    readers = [
        user.start(c.StatCube(name="/n/a")),
        user.start(c.ReadCube(name="/n/a")),
        user.start(c.Readdir(path="/n")),
        user.start(c.HistoryCube(name="/n/a")),
        user.start(c.StatNamespace(name="/n")),
        user.start(c.Readdir(path="/")),
    ]
    assert not any(reader.is_answered for reader in readers)
    world.settle()
    assert all(reader.is_answered for reader in readers)


# -- a commit that fails -------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["stage", "commit"])
@pytest.mark.parametrize(
    ("injected", "told"), [(Errno.ENOSPC, Errno.ENOSPC), (Errno.EIO, Errno.EIO)]
)
def test_a_failed_commit_answers_the_waiters_of_both_generations(
    store: FakeStore, io: FakeIo, step: str, injected: Errno, told: Errno
) -> None:
    ledger = Ledger(store, io)
    (store.fail_stage if step == "stage" else store.fail_commit)(injected)
    ledger.put("a", b"1", b"one")
    answers = [answer(ledger)]
    ledger.commit()
    if step == "commit":
        ledger.put("a", b"2", b"two")
        answers.append(answer(ledger))
        io.finish("commit")
    for heard in answers:
        assert [error.errno for error in heard if error] == [told]
    assert ledger.is_idle
    assert rows(ledger) == []
    ledger.put("a", b"3", b"three")
    after = answer(ledger)
    ledger.commit()
    io.finish("commit")
    assert after == [None], "the next commit is as good as any"
    assert rows(ledger) == [(b"3", b"three")]


@pytest.mark.parametrize("step", ["stage", "commit"])
def test_a_failed_commit_leaves_the_kernel_as_it_was(world: World, user: Client, step: str) -> None:
    user.write("/n/kept", b"kept")
    before = user.usage("/n"), user.call(c.Info()).log_seq
    (world.store.fail_stage if step == "stage" else world.store.fail_commit)(Errno.ENOSPC)
    first = [
        user.start(c.WriteCube(name="/n/new", payload=b"new")),
        user.start(c.WriteCube(name="/n/kept", payload=b"newer")),
        user.start(c.MakeNamespace(name="/fresh")),
    ]
    world.kernel.turn()
    second = [] if step == "stage" else [user.start(c.UnlinkCube(name="/n/kept"))]
    world.settle()
    for pending in first + second:
        assert pending.failure(Errno.ENOSPC).message.startswith("not committed")
    assert (user.usage("/n"), user.call(c.Info()).log_seq) == before
    assert user.read("/n/kept") == b"kept"
    user.fails(c.StatCube(name="/n/new"), Errno.ENOENT)
    user.fails(c.StatNamespace(name="/fresh"), Errno.ENOENT)
    user.write("/n/new", b"later")
    assert user.call(c.Info()).log_seq == before[1] + 1


def test_a_failed_commit_restores_quarantine_and_cache_payloads(world: World, user: Client) -> None:
    user.blob("/n/cache", bytes(8 * KIB), durability=Durability.CACHE)
    user.blob("/n/paged", bytes(8 * KIB))
    user.call(c.Evict(name="/n/paged"))
    table = world.kernel.parts.table
    volatile = dict(table.volatile)
    assert len(volatile) == 1
    world.store.fail_commit(Errno.EIO)
    gone = user.start(c.UnlinkCube(name="/n/cache"))
    world.plan.flip_bit()
    damaged = user.start(c.MmapCube(name="/n/paged"))
    world.io.finish("load")
    assert len(table.quarantined) == 1
    world.settle()
    gone.failure(Errno.EIO)
    damaged.failure(Errno.EIO)
    assert table.quarantined == set()
    assert table.volatile == volatile
    assert user.read("/n/cache") == bytes(8 * KIB)
    assert user.read("/n/paged") == bytes(8 * KIB), "its file was good all along"


def test_a_failed_commit_fails_readers_with_an_error_of_theirs(world: World, user: Client) -> None:
    user.blob("/n/map", bytes(8 * KIB))
    world.store.fail_commit(Errno.ENOSPC)
    user.start(c.WriteCube(name="/n/a", payload=b"x"))
    readers = [
        user.start(c.StatCube(name="/n/a")),
        user.start(c.Readdir(path="/n")),
        user.start(c.MmapCube(name="/n/a")),
        user.start(c.PinCube(name="/n/map")),
    ]
    world.settle()
    for reader in readers:
        # ENOSPC is nothing that their rows speak of: `failure` checks that.
        with pytest.raises(MemError):
            reader.result()


def test_a_failed_commit_takes_back_what_its_replies_would_have_granted(
    world: World, user: Client
) -> None:
    user.blob("/n/map", bytes(8 * KIB))
    world.store.fail_commit(Errno.ENOSPC)
    user.start(c.WriteCube(name="/n/a", payload=b"x"))
    calls = [
        user.start(c.MmapCube(name="/n/map")),
        user.start(c.PinCube(name="/n/map")),
        user.start(c.CreateCube(name="/n/fill", size_bytes=4096)),
    ]
    world.settle()
    for call in calls:
        with pytest.raises(MemError):
            call.result()
    assert user.session.handles == {}
    assert user.call(c.Evict(name="/n/map")).freed_bytes == 8 * KIB


def test_a_map_of_what_was_never_committed_is_taken_back(world: World, user: Client) -> None:
    world.store.fail_commit(Errno.ENOSPC)
    user.start(c.WriteCube(name="/n/a", payload=b"x"))
    world.kernel.turn()
    mapped = user.start(c.MmapCube(name="/n/a"))
    world.io.finish("commit")
    world.settle()
    with pytest.raises(MemError):
        mapped.result()
    assert len(world.kernel.parts.residents) == 0, "nobody can ever ask for it"


def test_a_batch_is_told_what_was_undone_while_it_waited(world: World, user: Client) -> None:
    world.store.fail_commit(Errno.ENOSPC)
    pending = user.start(
        batch_of(
            c.WriteCube(name="/n/small", payload=b"x"),
            c.WriteCube(name="/n/large", payload=bytes(8 * KIB), type=CubeType.BLOB),
            c.WriteCube(name="/n/after", payload=b"y"),
        )
    )
    world.kernel.turn()
    world.io.finish("commit")
    world.settle()
    results = pending.result().results
    assert [item.errno for item in results] == [Errno.ENOSPC, 0, 0]
    user.fails(c.StatCube(name="/n/small"), Errno.ENOENT)
    assert user.read("/n/large") == bytes(8 * KIB)
    assert user.read("/n/after") == b"y"

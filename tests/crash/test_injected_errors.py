"""The disk fails once, at every point where it can: one clear error, and all is well afterwards."""

import pytest

from libmem import CubeType, Durability, MemError
from libmem.abi.errors import Errno
from tests.crash.trial import BUSY, check_all, finish_all, writing
from tests.e2e.daemon import Daemon, eventually

ACTIONS = {"enospc": Errno.ENOSPC, "eio": Errno.EIO}
MIB = 1 << 20


@pytest.mark.parametrize(
    ("point", "passage", "action"),
    [
        ("page.write.before", 6, "enospc"),
        ("page.write.half", 5, "enospc"),
        ("page.fsync.before", 4, "eio"),
        ("page.rename.before", 3, "enospc"),
        ("page.rename.after", 2, "eio"),
        ("page.blocks.before", 2, "eio"),
        ("page.blocks.between", 4, "enospc"),
        ("store.stage", 20, "enospc"),
        ("store.commit.before", 20, "enospc"),
        ("store.commit.before", 30, "eio"),
    ],
)
def test_a_single_failure(point: str, passage: int, action: str, idle: Daemon) -> None:
    idle.config = BUSY.replace("0.01", "86400")  # write-back only when it is asked for
    idle.start(f"{point}={action}@{passage}")
    with writing(idle, seed=passage) as team:
        team[0].wait_for(lambda: any(witness.refused for witness in team))
        for witness in team:
            witness.wait_for_more(20)
    refused = [error.errno for witness in team for error in witness.refused]
    # A call whose row knows no ENOSPC, but whose answer hung on that commit, hears EIO.
    assert ACTIONS[action] in refused
    assert set(refused) <= {ACTIONS[action], Errno.EIO}
    check_all(idle, team)
    idle.restart()
    finish_all(idle, team)


@pytest.mark.parametrize(
    ("point", "action"), [("index.commit.before", "enospc"), ("index.commit.after", "eio")]
)
def test_an_index_that_fails_once(point: str, action: str, idle: Daemon) -> None:
    """Writers notice nothing; searches find everything a moment later."""
    idle.config = BUSY
    idle.start(f"{point}={action}@2")
    with writing(idle) as team:
        for witness in team:
            witness.wait_for_more(40)
    assert [error for witness in team for error in witness.refused] == []
    with idle.connect() as client:
        eventually(lambda: _is_caught_up(client.info()), "the index has caught up")
    check_all(idle, team)
    idle.restart()
    finish_all(idle, team)


def _is_caught_up(info: object) -> bool:
    return bool(info.indexed_seq == info.log_seq and not info.notices)  # type: ignore[attr-defined]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_boot_that_cannot_commit_is_refused(action: str, idle: Daemon) -> None:
    idle.environment = {"MEMOSD_FAILPOINTS": f"store.commit.before={action}"}
    status, words = idle.refuses_to_start()
    assert status == ACTIONS[action]
    assert len(words.splitlines()) == 1
    idle.environment = {}
    idle.start()


def test_page_files_that_can_never_be_written(idle: Daemon) -> None:
    """Small cubes go on; large ones say why not; cache cubes live in RAM, and end with it."""
    idle.start("page.fsync.before=eio")
    with idle.connect() as client:
        client.make_namespace("/t")
        with pytest.raises(MemError) as large:
            client.write("/t/large", bytes(MIB), type=CubeType.BLOB)
        assert large.value.errno is Errno.EIO
        client.write("/t/small", "as ever")
        client.write("/t/cache", bytes(MIB), type=CubeType.BLOB, durability=Durability.CACHE)
        for refused in (client.sync, lambda: client.evict("/t/cache")):
            with pytest.raises(MemError) as caught:
                refused()
            assert caught.value.errno is Errno.EIO
        assert client.read("/t/cache") == bytes(MIB)
        assert client.stat("/t/cache").tiers == ("ram",)
    idle.stop()
    assert "were not written back" in idle.log()
    idle.start()
    with idle.connect() as client:
        assert client.read("/t/small") == b"as ever"
        assert [stat.name for stat in client.list("/t")] == ["/t/small"]
        eventually(lambda: idle.page_files() == [], "nothing half-written is left")

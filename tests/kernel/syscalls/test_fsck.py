"""fsck: what it sees, what it puts aside, and what it must not take for damage."""

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType, Durability, Finding, Governance
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import KIB, Client, World

PAGED = 8 * KIB


def fsck(world: World, *, repair: bool = False, limit: int = 100) -> list[Finding]:
    """Findings of a whole run."""
    findings: list[Finding] = []
    cursor = ""
    while True:
        reply = world.root.call(c.Fsck(cursor=cursor, limit=limit, repair=repair))
        findings += reply.findings
        cursor = reply.next_cursor
        if not cursor:
            return findings


def test_a_sound_table_has_no_findings(world: World, user: Client) -> None:
    assert fsck(world) == []
    user.write("/n/small", b"x")
    user.blob("/n/large", bytes(PAGED))
    user.blob("/n/large", bytes(PAGED))
    user.blob("/n/empty", b"")
    user.blob("/n/cache", bytes(PAGED), durability=Durability.CACHE)
    user.call(c.SetHeader(name="/n/large", attributes={"k": 1}))
    user.write("/n/gone", b"x", governance=Governance(expires_ns=1))
    assert fsck(world) == []
    assert fsck(world, repair=True) == []


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_every_cube_is_looked_at_once_whatever_the_stretch(
    world: World, user: Client, limit: int
) -> None:
    for number in range(7):
        user.write(f"/n/{number}", b"x")
    replies = [world.root.call(c.Fsck(limit=limit))]
    while replies[-1].next_cursor:
        replies.append(world.root.call(c.Fsck(cursor=replies[-1].next_cursor, limit=limit)))
    assert all(reply.checked <= limit for reply in replies)
    assert sum(reply.checked for reply in replies) == 7


def test_a_damaged_page_file_is_found_and_put_aside_only_when_asked(
    world: World, user: Client
) -> None:
    user.blob("/n/a", bytes(PAGED))
    written = user.blob("/n/a", bytes(PAGED))
    world.clock.advance(SECOND_NS)  # so that it is looked at last
    user.blob("/n/b", bytes(PAGED))
    user.call(c.Evict(name="/n/a"))
    world.plan.fail("verify", Errno.ECORRUPT, nth=2)  # each version has a file of its own
    found = fsck(world)
    assert [(f.name, f.id, f.version, f.action) for f in found] == [("/n/a", written.id, 2, "")]
    assert "ECORRUPT" in found[0].problem
    assert user.read("/n/a") == bytes(PAGED), "looked at, not touched"
    world.plan.fail("verify", Errno.ECORRUPT, nth=2)
    assert [f.action for f in fsck(world, repair=True)] == ["quarantined"]
    user.fails(c.ReadCube(name="/n/a"), Errno.ECORRUPT)
    assert user.read("/n/a@v1") == bytes(PAGED)
    assert user.read("/n/b") == bytes(PAGED)
    assert [f.version for f in fsck(world)] == [2], "it stays known"
    user.unlink("/n/a")
    assert fsck(world) == []


def test_a_missing_page_file_is_found(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    world.disk.free(next(iter(world.disk.keys())))
    assert [f.name for f in fsck(world)] == ["/n/a"]
    user.unlink("/n/a")


def test_a_damaged_payload_in_the_table_is_found(world: World, user: Client) -> None:
    key = user.write("/n/a", b"text").id
    user.write("/n/b", b"text")
    world.damage("payloads", key)
    assert [(f.name, f.version) for f in fsck(world, repair=True)] == [("/n/a", 1)]
    user.fails(c.ReadCube(name="/n/a"), Errno.ECORRUPT)
    assert user.read("/n/b") == b"text"
    user.unlink("/n/a")


@pytest.mark.parametrize("table", ["cubes", "names", "history"])
def test_a_damaged_row_is_found(world: World, user: Client, table: str) -> None:
    cube_id = user.write("/n/a", b"1").id
    user.write("/n/a", b"2")
    user.write("/n/b", b"x")
    key = {"cubes": cube_id, "names": b"/n/a", "history": cube_id + (1).to_bytes(4, "big")}[table]
    world.damage(table, key)
    found = fsck(world)
    assert [finding.id for finding in found] == [cube_id]
    assert f"row of {table}" in found[0].problem
    world.damage(table, key)
    assert fsck(world) == []


def test_a_payload_that_is_in_ram_only_is_no_damage(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED), durability=Durability.CACHE)
    assert fsck(world) == []


def test_what_changes_while_it_looks_is_no_damage(world: World, user: Client) -> None:
    for name in ("a", "unlinked", "renamed", "written"):
        user.blob(f"/n/{name}", bytes(PAGED))
    check = world.root.start(c.Fsck(repair=True))
    assert world.io.names() == ["verify"]
    user.start(c.UnlinkCube(name="/n/unlinked"))
    user.start(c.RenameCube(name="/n/renamed", new_name="/n/elsewhere"))
    user.start(c.WriteCube(name="/n/written", payload=b"x", type=CubeType.BLOB))
    world.kernel.turn()
    world.io.finish("commit")
    world.settle()
    assert check.result().findings == ()
    for name in ("a", "elsewhere", "written@v1"):
        assert user.read(f"/n/{name}") == bytes(PAGED)


def test_a_cube_unlinked_while_its_file_was_read_is_no_finding(world: World, user: Client) -> None:
    user.blob("/n/a", bytes(PAGED))
    check = world.root.start(c.Fsck(repair=True))
    user.start(c.UnlinkCube(name="/n/a"))
    world.kernel.turn()
    world.io.finish("commit")
    world.io.finish("free")
    world.settle()
    assert check.result().findings == ()
    assert world.kernel.parts.table.quarantined == set()


def test_a_repair_that_was_undone_is_not_reported_as_done(world: World, user: Client) -> None:
    for name in "ab":
        user.blob(f"/n/{name}", bytes(PAGED))
    world.plan.fail("verify", Errno.ECORRUPT)
    check = world.root.start(c.Fsck(repair=True))
    world.io.finish("verify")
    world.store.fail_commit(Errno.EIO)
    world.kernel.turn()
    world.io.finish("commit")
    world.settle()
    check.failure(Errno.EIO)
    assert world.kernel.parts.table.quarantined == set()


@pytest.mark.parametrize("bad", [{"limit": 0}, {"limit": 1001}, {"cursor": "zz"}], ids=repr)
def test_senseless_requests_are_refused(world: World, bad: dict[str, object]) -> None:
    world.root.fails(c.Fsck(**bad), Errno.EINVAL)  # type: ignore[arg-type]


def test_real_page_files_with_a_flipped_bit_are_found(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("real")
    world = World(directory, is_real=True)
    user = world.client()
    user.make("/n")
    user.blob("/n/a", bytes(PAGED))
    user.blob("/n/b", bytes(PAGED))
    path = next(directory.glob("pages/*/*.page"))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    damaged = [f.name for f in fsck(world, repair=True)]
    assert len(damaged) == 1
    user.fails(c.ReadCube(name=damaged[0]), Errno.ECORRUPT)
    sound = ({"/n/a", "/n/b"} - set(damaged)).pop()
    assert user.read(sound) == bytes(PAGED)
    world.close()

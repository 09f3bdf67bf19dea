"""Access: mode bits, as a file system has them, on every call that touches a cube."""

import itertools
from typing import Any

import pytest

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Advice, CubeType, Governance, TierName
from memosd.kernel.access import EXECUTE, READ, WRITE, Identity, allows, require_owner
from tests.kernel.world import KIB, ROOT, USER, Client, World

OWNER = (USER, 100)
WHO = {
    "owner": Identity(USER, 1, 1),
    "owner in the group": Identity(USER, 100, 1),
    "member": Identity(2000, 100, 1),
    "supplementary": Identity(2000, 1, 1, frozenset({7, 100})),
    "other": Identity(2000, 1, 1, frozenset({7})),
    "admin": Identity(ROOT, 0, 1, is_admin=True),
}
SHIFT = {
    "owner": 6,
    "owner in the group": 6,
    "member": 3,
    "supplementary": 3,
    "other": 0,
}


@pytest.mark.parametrize("who", WHO)
def test_the_first_class_that_fits_decides_alone(who: str) -> None:
    for mode, wanted in itertools.product(range(0o1000), range(8)):
        expected = who == "admin" or (mode >> SHIFT[who]) & 7 & wanted == wanted
        assert allows(WHO[who], OWNER, mode, wanted) == expected


def test_root_is_no_administrator_unless_the_daemon_says_so() -> None:
    assert not allows(Identity(ROOT, 0, 1), OWNER, 0o700, READ)


def test_only_the_owner_and_the_administrator_own() -> None:
    require_owner(WHO["owner"], USER, "it")
    require_owner(WHO["admin"], USER, "it")
    for who in ("member", "supplementary", "other"):
        with pytest.raises(MemError) as caught:
            require_owner(WHO[who], USER, "it")
        assert caught.value.errno is Errno.EPERM


# -- what each call needs ------------------------------------------------------------------------

NAME = "/shared/cube"

# call, what it needs of the cube, what it needs of the namespace
CALLS: dict[str, tuple[c.Call[Any], int, int]] = {
    "read": (c.ReadCube(name=NAME), READ, EXECUTE),
    "stat": (c.StatCube(name=NAME), READ, EXECUTE),
    "history": (c.HistoryCube(name=NAME), READ, EXECUTE),
    "mmap": (c.MmapCube(name=NAME), READ, EXECUTE),
    "pin": (c.PinCube(name=NAME), READ, EXECUTE),
    "explain": (c.Explain(name=NAME), READ, EXECUTE),
    "advise": (c.AdviseCube(name=NAME, advice=Advice.COLD), READ, EXECUTE),
    "evict": (c.Evict(name=NAME), WRITE, EXECUTE),
    "migrate": (c.MigrateCube(name=NAME, tier=TierName.DISK), WRITE, EXECUTE),
    "write": (c.WriteCube(name=NAME, payload=b"2", type=CubeType.BLOB), WRITE, EXECUTE),
    "create": (c.CreateCube(name=NAME, size_bytes=1), WRITE, EXECUTE),
    "rename": (c.RenameCube(name=NAME, new_name=NAME + "2"), WRITE, WRITE | EXECUTE),
    "unlink": (c.UnlinkCube(name=NAME), WRITE, WRITE | EXECUTE),
}


@pytest.mark.parametrize("call", CALLS)
def test_each_call_needs_its_bits_and_no_others(world: World, call: str) -> None:
    request, of_cube, of_space = CALLS[call]
    owner, stranger = world.client(), world.client(2000)
    for cube_bits, space_bits in itertools.product(range(8), range(8)):
        owner.make("/shared", mode=0o700 | space_bits)
        owner.blob(NAME, bytes(4 * KIB), governance=Governance(mode=0o600 | cube_bits))
        allowed = cube_bits & of_cube == of_cube and space_bits & of_space == of_space
        if allowed:
            stranger.call(request)
        else:
            stranger.fails(request, Errno.EACCES)
        stranger.hello()  # lets go of what it holds
        for entry in owner.call(c.Readdir(path="/shared")).entries:
            owner.unlink(entry.name)
        owner.call(c.RemoveNamespace(name="/shared"))


@pytest.mark.parametrize("space_bits", range(8))
def test_a_new_cube_needs_a_namespace_that_may_be_changed(world: World, space_bits: int) -> None:
    owner, stranger = world.client(), world.client(2000)
    owner.make("/shared", mode=0o700 | space_bits)
    request = c.WriteCube(name="/shared/new", payload=b"x")
    if space_bits & (WRITE | EXECUTE) == WRITE | EXECUTE:
        stranger.call(request)
        assert stranger.stat("/shared/new").governance.owner_uid == 2000
    else:
        stranger.fails(request, Errno.EACCES)


def test_a_rename_needs_both_namespaces(world: World) -> None:
    owner, stranger = world.client(), world.client(2000)
    owner.make("/from", mode=0o777)
    owner.make("/to", mode=0o755)
    stranger.write("/from/a", b"x")
    stranger.fails(c.RenameCube(name="/from/a", new_name="/to/a"), Errno.EACCES)
    owner.make("/open", mode=0o773)
    stranger.call(c.RenameCube(name="/from/a", new_name="/open/a"))


def test_the_group_of_the_cube_may_do_what_its_bits_say(world: World) -> None:
    owner = world.client(USER, USER, 100)
    owner.make("/shared", mode=0o755)
    owner.write("/shared/a", b"x", governance=Governance(mode=0o640, owner_gid=100))
    member, supplementary = world.client(2000, 100), world.client(2001, 1, 7, 100)
    for reader in (member, supplementary):
        assert reader.read("/shared/a") == b"x"
        reader.fails(c.WriteCube(name="/shared/a", payload=b"y"), Errno.EACCES)
    world.client(2002, 1, 7).fails(c.ReadCube(name="/shared/a"), Errno.EACCES)


def test_the_administrator_passes_every_check(world: World, user: Client) -> None:
    user.write("/n/a", b"x", governance=Governance(mode=0))
    user.fails(c.ReadCube(name="/n/a"), Errno.EACCES)
    root = world.root
    assert root.read("/n/a") == b"x"
    root.write("/n/a", b"y")
    root.call(c.SetHeader(name="/n/a", governance=Governance(mode=0o600)))
    assert user.read("/n/a") == b"y"
    root.call(c.RenameCube(name="/n/a", new_name="/n/b"))
    root.unlink("/n/b")


def test_the_owner_who_locked_himself_out_can_unlock(user: Client) -> None:
    """As chmod: changing the bits needs the owner, not the bits."""
    user.write("/n/a", b"x", governance=Governance(mode=0))
    user.fails(c.StatCube(name="/n/a"), Errno.EACCES)
    user.call(c.SetHeader(name="/n/a", governance=Governance(mode=0o600)))
    assert user.read("/n/a") == b"x"


def test_rights_are_looked_at_again_when_a_fill_is_sealed(world: World) -> None:
    owner, stranger = world.client(), world.client(2000)
    owner.make("/shared", mode=0o777)
    handle = stranger.call(c.CreateCube(name="/shared/a", size_bytes=4 * KIB)).handle
    owner.write("/shared/a", b"mine", type=CubeType.BLOB)
    stranger.fails(c.SealCube(handle=handle), Errno.EACCES)
    assert owner.read("/shared/a") == b"mine"


def test_rights_are_looked_at_again_after_a_fault(world: World) -> None:
    owner, stranger = world.client(), world.client(2000)
    owner.make("/shared", mode=0o755)
    owner.blob("/shared/a", bytes(4 * KIB), governance=Governance(mode=0o644))
    owner.call(c.Evict(name="/shared/a"))
    mapping = stranger.start(c.MmapCube(name="/shared/a"))
    owner.start(c.SetHeader(name="/shared/a", governance=Governance(mode=0o600)))
    world.settle()
    mapping.failure(Errno.EACCES)
    assert stranger.session.handles == {}


def test_what_may_not_be_read_is_not_listed_found_or_explained(world: World) -> None:
    owner, stranger = world.client(), world.client(2000)
    owner.make("/shared", mode=0o755)
    owner.write("/shared/open", b"word", governance=Governance(mode=0o644))
    owner.write("/shared/closed", b"word")
    owner.write("/shared/folder/closed", b"word")
    listed = stranger.call(c.Readdir(path="/shared"))
    assert [entry.name for entry in listed.entries] == ["/shared/open"]
    assert listed.folders == ()
    found = stranger.call(c.Search(query="word")).hits
    assert [hit.name for hit in found] == ["/shared/open"]
    assert [hit.rank for hit in found] == [1]
    owner.call(c.PinCube(name="/shared/closed"))
    assert stranger.call(c.Log()).decisions == ()
    assert owner.call(c.Log()).decisions[0][0] == "/shared/closed"
    stranger.fails(c.Readdir(path="/shared/../shared"), Errno.EINVAL)


def test_a_namespace_is_listed_with_its_read_bit_only(world: World) -> None:
    owner, stranger = world.client(), world.client(2000)
    owner.make("/closed", mode=0o700)
    owner.make("/through", mode=0o711)
    owner.make("/listed", mode=0o755)
    visible = stranger.call(c.Readdir(path="/")).namespaces
    assert [space.name for space in visible] == ["/listed", "/through"]
    stranger.call(c.Readdir(path="/listed"))
    stranger.fails(c.Readdir(path="/through"), Errno.EACCES)
    stranger.call(c.StatNamespace(name="/through"))
    stranger.fails(c.StatNamespace(name="/closed"), Errno.EACCES)
    stranger.fails(c.RemoveNamespace(name="/listed"), Errno.EPERM)

"""readdir: pages of cubes and folders, in order, each once, none that may not be seen."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Governance
from tests.kernel.conftest import MakeWorld
from tests.kernel.fakes import SECOND_NS
from tests.kernel.world import Client, World, batch_of


def listing(
    user: Client, path: str, *, limit: int = 100, is_recursive: bool = False
) -> tuple[list[str], list[str]]:
    """All pages of a listing: (cubes, folders)."""
    entries: list[str] = []
    folders: list[str] = []
    cursor = ""
    while True:
        request = c.Readdir(path=path, cursor=cursor, limit=limit, is_recursive=is_recursive)
        reply = user.call(request)
        assert len(reply.entries) + len(reply.folders) <= limit
        entries += [entry.name for entry in reply.entries]
        folders += reply.folders
        cursor = reply.next_cursor
        if not cursor:
            return entries, folders


def test_a_folder_shows_its_cubes_and_its_folders(user: Client) -> None:
    for name in ("a", "b/c", "b/d/e", "b.x", "f/g"):
        user.write(f"/n/{name}", b"x")
    assert listing(user, "/n") == (["/n/a", "/n/b.x"], ["/n/b/", "/n/f/"])
    assert listing(user, "/n/b") == (["/n/b/c"], ["/n/b/d/"])
    assert listing(user, "/n/b/") == listing(user, "/n/b")
    assert listing(user, "/n/b", is_recursive=True) == (["/n/b/c", "/n/b/d/e"], [])
    assert listing(user, "/n/nothing") == ([], [])
    assert listing(user, "/n/a") == ([], []), "a cube is no folder"


def test_entries_are_what_stat_says(user: Client) -> None:
    user.write("/n/a", b"1", attributes={"k": 1})
    user.write("/n/a", b"2")
    assert user.call(c.Readdir(path="/n")).entries == (user.stat("/n/a"),)


def test_the_root_shows_namespaces(world: World, user: Client) -> None:
    user.make("/a")
    reply = user.call(c.Readdir(path="/"))
    assert [space.name for space in reply.namespaces] == ["/a", "/n"]
    assert (reply.entries, reply.folders, reply.next_cursor) == ((), (), "")
    assert world.client(2000).call(c.Readdir(path="/")).namespaces == ()


def test_what_changed_a_moment_ago_is_listed_as_it_is_now(user: Client) -> None:
    user.write("/n/a", b"x")
    reply = user.call(
        batch_of(
            c.WriteCube(name="/n/b", payload=b"x"),
            c.UnlinkCube(name="/n/a"),
            c.RenameCube(name="/n/b", new_name="/n/c"),
            c.Readdir(path="/n"),
        )
    )
    assert [item.errno for item in reply.results] == [0] * 4
    assert listing(user, "/n") == (["/n/c"], [])


def test_a_cube_that_expired_is_not_listed_nor_its_folder(world: World, user: Client) -> None:
    soon = Governance(expires_ns=world.clock.wall_ns() + 1)
    user.write("/n/a/b", b"x", governance=soon)
    user.write("/n/c", b"x")
    world.clock.advance(SECOND_NS)
    assert listing(user, "/n") == (["/n/c"], [])


@pytest.mark.parametrize("table", ["names", "cubes"])
def test_a_damaged_row_is_left_out_and_the_rest_is_listed(
    world: World, user: Client, table: str
) -> None:
    cube_id = user.write("/n/b", b"x").id
    user.write("/n/a", b"x")
    user.write("/n/c", b"x")
    key = b"/n/b" if table == "names" else cube_id
    world.damage(table, key)
    assert listing(user, "/n") == (["/n/a", "/n/c"], [])
    world.damage(table, key)


def test_a_long_scan_gives_others_their_turn(make_world: MakeWorld) -> None:
    """Thousands of names that may not be read cost several short calls, not a long one."""
    world = make_world(disk_budget_bytes=64 << 20)
    user = world.client()
    user.make("/shared", mode=0o755)
    for start in range(0, 9000, 1000):
        user.call(
            batch_of(
                *(
                    c.WriteCube(name=f"/shared/{n:05}", payload=b"")
                    for n in range(start, start + 1000)
                )
            )
        )
    user.write("/shared/z", b"x", governance=Governance(mode=0o644))
    stranger = world.client(2000)
    first = stranger.call(c.Readdir(path="/shared"))
    assert first.entries == ()
    assert first.next_cursor
    assert listing(stranger, "/shared") == (["/shared/z"], [])


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        (c.Readdir(path="n"), Errno.EINVAL),
        (c.Readdir(path="/n/../m"), Errno.EINVAL),
        (c.Readdir(path="/n//a"), Errno.EINVAL),
        (c.Readdir(path=""), Errno.EINVAL),
        (c.Readdir(path="/m"), Errno.ENOENT),
        (c.Readdir(path="/n", limit=0), Errno.EINVAL),
        (c.Readdir(path="/n", limit=1001), Errno.EINVAL),
        (c.Readdir(path="/n", cursor="/m/a"), Errno.EINVAL),
        (c.Readdir(path="/n/a", cursor="/n/b"), Errno.EINVAL),
        (c.Readdir(path="/n", cursor="x" * 5000), Errno.EINVAL),
        (c.Readdir(path="/" + "x" * 300), Errno.ENAMETOOLONG),
    ],
    ids=repr,
)
def test_senseless_requests_are_refused(user: Client, request_: c.Readdir, errno: Errno) -> None:
    user.fails(request_, errno)


def test_a_cursor_of_any_length_is_only_a_place(user: Client) -> None:
    user.write("/n/a", b"x")
    reply = user.call(c.Readdir(path="/n", cursor="/n/" + "z" * 2000))
    assert reply.entries == ()


SEGMENT = st.sampled_from(["a", "a b", "a-", "a.", "b", "é", "~", "0"])
NAME = st.lists(SEGMENT, min_size=1, max_size=3).map("/".join)


@settings(max_examples=150, deadline=None)
@given(
    names=st.sets(NAME, max_size=14),
    hidden=st.sets(NAME, max_size=6),
    path=st.lists(SEGMENT, max_size=2),
    page=st.tuples(st.integers(1, 5), st.booleans()),
)
def test_pages_add_up_to_what_a_dict_would_list(
    names: set[str], hidden: set[str], path: list[str], page: tuple[int, bool]
) -> None:
    limit, is_recursive = page
    world = World(Path("unused"))
    owner, reader = world.client(), world.client(2000)
    owner.make("/n", mode=0o755)
    for name in names | hidden:
        mode = 0o600 if name in hidden else 0o644
        owner.start(c.WriteCube(name=f"/n/{name}", payload=b"", governance=Governance(mode=mode)))
    root = "/".join(["/n", *path])
    wanted: set[str] = set()
    folders: set[str] = set()
    for name in names - hidden:
        full = f"/n/{name}"
        if not full.startswith(root + "/"):
            continue
        rest = full[len(root) + 1 :]
        if is_recursive or "/" not in rest:
            wanted.add(full)
        else:
            folders.add(f"{root}/{rest.split('/')[0]}/")
    found = listing(reader, root, limit=limit, is_recursive=is_recursive)
    assert found == (
        sorted(wanted, key=str.encode),
        sorted(folders, key=str.encode),
    )
    world.close()

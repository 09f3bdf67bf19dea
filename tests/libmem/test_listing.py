"""Namespaces and the cubes of all of them, by both clients; a namespace that is closed or gone."""

import asyncio
from typing import Any

import msgspec
import pytest

import libmem
import libmem.aio
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from tests.libmem.fake_daemon import FakeDaemon, refuse

NAMES = ["/a/1", "/b/1", "/c/1", "/c/2", "/c/3"]


@pytest.fixture
def filled(client: libmem.Client) -> libmem.Client:
    for name in NAMES:
        client.write(name, name)
    return client


def test_the_namespaces(filled: libmem.Client) -> None:
    assert [space.name for space in filled.namespaces()] == ["/a", "/b", "/c"]


def test_the_root_lists_the_cubes_of_all_namespaces(filled: libmem.Client) -> None:
    assert [stat.name for stat in filled.list("/", is_recursive=True)] == NAMES


def test_the_root_alone_holds_no_cube_and_says_so(filled: libmem.Client) -> None:
    with pytest.raises(MemError, match=r"namespaces\(\)") as raised:
        next(filled.list("/"))
    assert raised.value.errno is Errno.EINVAL


@pytest.mark.parametrize("errno", [Errno.EACCES, Errno.ENOENT])
def test_a_namespace_that_is_closed_or_gone_is_passed_over(
    filled: libmem.Client, daemon: FakeDaemon, errno: Errno
) -> None:
    listing = filled.list("/", is_recursive=True)
    assert next(listing).name == "/a/1"
    daemon.script("readdir", refuse(MemError(errno, "not now")))  # for /b
    assert [stat.name for stat in listing] == NAMES[2:]


def test_another_error_ends_the_listing(filled: libmem.Client, daemon: FakeDaemon) -> None:
    listing = filled.list("/", is_recursive=True)
    assert next(listing).name == "/a/1"
    daemon.script("readdir", refuse(MemError(Errno.ECORRUPT, "damaged")))
    with pytest.raises(MemError) as raised:
        list(listing)
    assert raised.value.errno is Errno.ECORRUPT


def test_the_same_for_asyncio(filled: libmem.Client, daemon: FakeDaemon) -> None:
    async def main() -> tuple[list[str], list[str]]:
        async with await libmem.aio.connect(daemon.runtime_dir) as client:
            spaces = [space.name async for space in client.namespaces()]
            listing = client.list("/", is_recursive=True)
            names = [(await anext(listing)).name]
            daemon.script("readdir", refuse(MemError(Errno.EACCES, "closed")))
            return spaces, names + [stat.name async for stat in listing]

    assert asyncio.run(main()) == (["/a", "/b", "/c"], ["/a/1", *NAMES[2:]])


class Scripted:
    """A client whose replies were written beforehand."""

    _iterate: Any = libmem.Client._iterate
    sessions: Any = libmem.Client.sessions
    pins: Any = libmem.Client.pins
    limits: Any = libmem.Client.limits
    fsck: Any = libmem.Client.fsck

    def __init__(self, *replies: msgspec.Struct) -> None:
        self.requests: list[c.Call[Any]] = []
        self._replies = iter(replies)

    def call(self, request: c.Call[Any]) -> msgspec.Struct:
        self.requests.append(request)
        return next(self._replies)


@pytest.mark.parametrize(
    ("listing", "reply", "items", "place", "places"),
    [
        ("sessions", c.ListSessionsReply, "sessions", "after", (7, 9, 0)),
        ("pins", c.ListPinsReply, "pins", "after", (7, 9, 0)),
        ("limits", c.StatLimitsReply, "groups", "cursor", ("/a", "/b", "")),
    ],
)
def test_a_listing_goes_on_where_each_page_ends(
    listing: str, reply: Any, items: str, place: str, places: tuple[int | str, ...]
) -> None:
    held: list[tuple[Any, ...]] = [("one", "two"), (), ("three",)]
    pages = [
        reply(**{items: there, f"next_{place}": next_place})
        for there, next_place in zip(held, places, strict=True)
    ]
    client = Scripted(*pages)
    listed = getattr(client, listing)()
    assert next(listed) == "one"
    assert len(client.requests) == 1, "a page is asked for when it is wanted"
    assert list(listed) == ["two", "three"]
    start = type(places[0])()
    assert [getattr(each, place) for each in client.requests] == [start, *places[:-1]]


def test_each_stretch_of_fsck_is_handed_on_as_it_is() -> None:
    stretches = [c.FsckReply(2, (), "x"), c.FsckReply(1, ())]
    client = Scripted(*stretches)
    assert list(client.fsck(repair=True)) == stretches
    assert client.requests == [c.Fsck(cursor, repair=True) for cursor in ("", "x")]

"""Namespaces and the cubes of all of them, by both clients; a namespace that is closed or gone."""

import asyncio

import pytest

import libmem
import libmem.aio
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

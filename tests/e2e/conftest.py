"""Daemons for the end-to-end tests: one that a file's tests share, and a fresh one for the rest.

All tests find an empty namespace /t.
"""

from collections.abc import Iterator

import pytest

import libmem
from libmem.abi.calls import UnlinkCube
from tests.e2e.daemon import Daemon, eventually, running, tier


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """A running daemon for all tests of a file; none of them may end it."""
    daemon = Daemon()
    with running(daemon):
        yield daemon


@pytest.fixture
def client(shared: Daemon) -> Iterator[libmem.Client]:
    """A client of the shared daemon. Whatever the test made is unlinked, and must then be free."""
    with shared.connect() as client:
        client.make_namespace("/t")
        yield client
    shared.await_rest()
    with shared.connect() as client:
        names = [stat.name for stat in client.list("/t", is_recursive=True)]
        for at in range(0, len(names), 1000):
            client.batch([UnlinkCube(name) for name in names[at : at + 1000]])
        usage = client.stat_namespace("/t").usage
        assert (usage.disk_bytes, usage.cubes) == (0, 0)
        client.remove_namespace("/t")
        eventually(lambda: tier(client.info(), "ram").used_bytes == 0, "unlinked memory is free")
        eventually(lambda: not shared.page_files(), "unlinked page files are gone")
    shared.await_rest()


@pytest.fixture
def idle() -> Iterator[Daemon]:
    """A daemon of the test's own that the test starts itself; without /t."""
    daemon = Daemon()
    yield daemon
    daemon.finish()


@pytest.fixture
def daemon(idle: Daemon) -> Daemon:
    """A running daemon of the test's own."""
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
    return idle

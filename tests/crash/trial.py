"""What every crash test does around its crash: write under witness, restart, compare, audit."""

from collections.abc import Iterator
from contextlib import contextmanager

import libmem
from libmem import MemError
from tests.crash.audit import audit
from tests.crash.kvwitness import witnesses
from tests.crash.witness import LARGE, Witness
from tests.e2e.daemon import Daemon, eventually

__all__ = ["BUSY", "check_all", "finish_all", "writing"]

BUSY = """
[ram]
budget_bytes = "4 MiB"
[behaviour]
writeback_delay_s = 0.01
heat_flush_s = 0.05
"""
"""A daemon that has to evict and write back all the time."""


@contextmanager
def writing(daemon: Daemon, count: int = 3, seed: int = 0) -> Iterator[list[Witness]]:
    """Witnesses at work. Afterwards they rest; the daemon must be back by then, or end calls."""
    team = witnesses(daemon, count, seed)
    for witness in team:
        witness.start()
    try:
        yield team
    finally:
        for witness in team:
            witness.wind_up()
    for witness in team:
        witness.rest()


def check_all(daemon: Daemon, team: list[Witness]) -> None:
    """Compare with what every witness knows; nothing is left over, nothing is damaged."""
    with daemon.connect() as client:
        for witness in team:
            witness.verify(client)
        client.sync()
        assert [finding for reply in client.fsck() for finding in reply.findings] == []
        eventually(lambda: len(daemon.page_files()) == _large_versions(client), "orphans are gone")


def finish_all(daemon: Daemon, team: list[Witness]) -> None:
    """`check_all`, then stop the daemon and look at its data from the outside."""
    check_all(daemon, team)
    daemon.await_rest()
    daemon.stop()
    audit(daemon.data_dir)


def _large_versions(client: libmem.Client) -> int:
    """How many page files there should be."""
    stats = list(client.list("/t", is_recursive=True))
    try:
        versions = [version for stat in stats for version in client.history(stat.name, limit=1000)]
    except MemError:
        return -1
    return sum(version.size_bytes >= LARGE for version in versions)

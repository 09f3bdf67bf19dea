"""A daemon on a machine that is short of memory, by a reserve that is larger than what is left."""

from collections.abc import Iterator

import pytest

import libmem
from libmem.abi.structs import CubeType
from tests.e2e.daemon import Daemon, eventually, tier

MIB = 1 << 20
BUDGET = 64 * MIB
FLOOR = BUDGET // 16


@pytest.fixture
def squeezed(idle: Daemon) -> Iterator[libmem.Client]:
    """A client of a daemon that is to leave nearly all memory to others."""
    idle.config = f'[ram]\nbudget_bytes = {BUDGET}\nreserve_bytes = "99.99%"\n'
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        yield client


def test_it_serves_with_the_least_budget_and_says_so(squeezed: libmem.Client) -> None:
    eventually(lambda: tier(squeezed.info(), "ram").budget_bytes == FLOOR, "the budget falls")
    info = squeezed.info()
    assert tier(info, "ram").configured_bytes == BUDGET
    assert any(f"the RAM budget is {FLOOR / MIB:.1f} MiB" in text for text in info.notices)
    assert 0 < info.machine.available_bytes < info.machine.reserve_bytes
    payloads = {f"/t/{number}": bytes([number]) * MIB for number in range(10)}
    for name, payload in payloads.items():
        squeezed.write(name, payload, type=CubeType.BLOB)
        ram = tier(squeezed.info(), "ram")
        assert ram.used_bytes <= ram.budget_bytes == FLOOR
    for name, payload in payloads.items():
        with squeezed.map(name) as mapping:
            assert bytes(mapping) == payload
    disk = tier(squeezed.info(), "disk")
    assert disk.some.total_us > 0, "maps waited for page files"
    assert disk.some.total_us >= disk.full.total_us


def test_what_is_pinned_stays(idle: Daemon) -> None:
    idle.config = f"[ram]\nbudget_bytes = {BUDGET}\nreserve_bytes = 0\n"
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        client.write("/t/a", bytes(8 * MIB), type=CubeType.BLOB)
        info = client.info()
        assert info.machine.total_bytes == 0, "nobody looks without a reserve"
    idle.stop()
    idle.config = f'[ram]\nbudget_bytes = {BUDGET}\nreserve_bytes = "99.99%"\n'
    idle.config += "[limits]\npin_share_per_uid = 1.0\n"
    idle.start()
    with idle.connect() as client:
        eventually(lambda: tier(client.info(), "ram").budget_bytes == FLOOR, "the budget falls")
        client.write("/t/b", bytes(3 * MIB), type=CubeType.BLOB)
        with client.pin("/t/b"):
            client.write("/t/c", bytes(MIB), type=CubeType.BLOB)
            assert "ram" in client.stat("/t/b").tiers

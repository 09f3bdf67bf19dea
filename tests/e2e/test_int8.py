"""KV caches as int8 on disk, over a real daemon: what processes map, before and after."""

import pytest

import libmem
from libmem import CubeType, Durability
from libmem.abi.digest import digest_of
from libmem.abi.kv import KvHeader
from libmem.abi.structs import StoredForm
from tests.caches import INT8, attributes_of, header_of, payload_of, planes, wavy
from tests.e2e.daemon import Daemon

HEADER = header_of(1000, heads=2)
PAYLOAD = payload_of(HEADER, wavy)
BOTH = pytest.mark.parametrize("durability", Durability)


def store(
    client: libmem.Client, header: KvHeader = HEADER, durability: Durability = Durability.CACHE
) -> None:
    """Fill, seal and drop from RAM."""
    options = {"type": CubeType.ACTIVATION, "attributes": attributes_of(header)}
    fill = client.create("/t/kv", len(PAYLOAD), durability=durability, **options)  # type: ignore[arg-type]
    fill.copy_in(PAYLOAD)
    fill.seal()
    client.evict("/t/kv")


def mapped(client: libmem.Client) -> bytes:
    """What a process sees."""
    with client.map("/t/kv") as mapping:
        return bytes(mapping)


def form_of(client: libmem.Client) -> StoredForm:
    """How it lies on disk."""
    form = client.stat("/t/kv").stored
    assert form is not None
    return form


@BOTH
def test_all_processes_see_the_same(daemon: Daemon, durability: Durability) -> None:
    with daemon.connect() as client:
        store(client, durability=durability)
        lossy, form = mapped(client), form_of(client)
        assert digest_of(lossy) == form.content_digest
        largest = max(
            abs(before - after).max() / abs(before).max()
            for before, after in zip(planes(HEADER, PAYLOAD), planes(HEADER, lossy), strict=True)
        )
        assert 0 < largest < 1 / 200
        (file,) = daemon.page_files()
        assert file.stat().st_size < len(PAYLOAD) * 0.28
        assert client.stat_namespace("/t").usage.disk_bytes < len(PAYLOAD) * 0.28
    daemon.restart()
    with daemon.connect() as client:
        assert mapped(client) == lossy
        assert form_of(client) == form
        assert [finding for reply in client.fsck() for finding in reply.findings] == []


def test_the_configuration_decides_where_the_header_does_not(idle: Daemon) -> None:
    idle.config = '[kv]\nstore_as = "int8"\nerror_max = 0.05\n'
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        store(client, header_of(1000, None, heads=2))
        assert mapped(client) != PAYLOAD
        assert form_of(client).form == INT8.form

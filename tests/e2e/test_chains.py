"""KV caches between processes: mapped as one, valid for as long as anybody has them."""

import os
from collections.abc import Sequence

import pytest

import libmem
from libmem import CubeType, Durability
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KvLayers, pack_tokens
from libmem.parts import Parts
from tests.caches import MODEL, attributes_of, part_of
from tests.e2e.actor import Actor
from tests.e2e.daemon import Daemon, eventually, tier

OTHER = "cd" * 32
LAYERS = KvLayers(count=4, heads=3, key_dim=64, value_dim=64)
GRAIN = 16
TOKENS = list(range(3 * GRAIN))
PART_BYTES = len(part_of(LAYERS, TOKENS[:GRAIN])[1])

MAPPED = f"""
parts = client.map_parts("/t/leaf", model={MODEL!r})
say("ready")
hear()
for part in parts.parts:
    say(str(sum(os.pread(part.fd, part.size_bytes, 0)[:4096])))
hear()
parts.give_back()
client.info()
say("gone")
"""


def write(
    client: libmem.Client, name: str, tokens: Sequence[int], start: int = 0, *parents: str
) -> None:
    header, payload = part_of(LAYERS, tokens, start)
    client.write(
        name,
        payload,
        type=CubeType.ACTIVATION,
        attributes=attributes_of(header),
        parents=parents,
    )


def write_chain(client: libmem.Client) -> None:
    """Three parts of a grain each."""
    write(client, "/t/root", TOKENS[:GRAIN])
    write(client, "/t/middle", TOKENS[: 2 * GRAIN], GRAIN, "/t/root")
    write(client, "/t/leaf", TOKENS, 2 * GRAIN, "/t/middle")


@pytest.fixture
def chain(client: libmem.Client) -> libmem.Client:
    write_chain(client)
    return client


def read(parts: Parts) -> list[bytes]:
    return [os.pread(part.fd, part.size_bytes, 0) for part in parts.parts]


def ram_bytes(client: libmem.Client) -> int:
    return tier(client.info(), "ram").used_bytes


def test_two_processes_map_one_chain(shared: Daemon, chain: libmem.Client) -> None:
    sums = [str(sum(pack_tokens(TOKENS[at : at + GRAIN]))) for at in (0, GRAIN, 2 * GRAIN)]
    padding = (4096 - 4 * GRAIN) * ord("k")
    with Actor(shared, MAPPED) as one, Actor(shared, MAPPED) as two:
        for actor in (one, two):
            actor.expect("ready")
        assert [chain.stat(f"/t/{name}").maps for name in ("root", "middle", "leaf")] == [2] * 3
        assert ram_bytes(chain) == 3 * PART_BYTES, "one copy"
        for actor in (one, two):
            actor.tell()
            assert [actor.hear() for _ in sums] == [str(int(each) + padding) for each in sums]
            actor.tell()
            actor.expect("gone")
            actor.end()
    eventually(lambda: chain.stat("/t/root").maps == 0, "all is given back")


def test_an_unlinked_chain_is_valid_until_the_last_lets_go(
    shared: Daemon, chain: libmem.Client
) -> None:
    before = read(chain.map_parts("/t/leaf"))
    with Actor(shared, MAPPED) as other:
        other.expect("ready")
        mine = chain.map_parts("/t/leaf")
        assert chain.unlink("/t/root").dependents == 2
        for name in ("root", "middle", "leaf"):
            with pytest.raises(MemError) as absent:
                chain.stat(f"/t/{name}")
            assert absent.value.errno is Errno.ENOENT
        assert read(mine) == before
        mine.give_back()
        chain.info()
        assert ram_bytes(chain) == 3 * PART_BYTES, "the other one has it still"
        other.tell()
        assert all(other.hear() for _ in before)
        other.tell()
        other.expect("gone")
        eventually(lambda: ram_bytes(chain) == 0, "the last has let go")
        other.end()


def test_a_client_that_is_killed_lets_go_of_all_parts(shared: Daemon, chain: libmem.Client) -> None:
    with Actor(shared, MAPPED) as other:
        other.expect("ready")
        assert chain.stat("/t/root").maps == 1
        other.kill()
        eventually(lambda: chain.stat("/t/root").maps == 0, "its maps are gone")
    assert [chain.evict(f"/t/{name}") for name in ("root", "middle", "leaf")] == [PART_BYTES] * 3
    with chain.map_parts("/t/leaf") as parts:
        assert len(parts.parts) == 3, "read from disk, verified"


def test_a_chain_outlives_the_daemon_in_who_mapped_it(daemon: Daemon) -> None:
    with daemon.connect() as client:
        write_chain(client)
        client.sync()
        parts = client.map_parts("/t/leaf")
        before = read(parts)
        pin = client.pin("/t/leaf")
        daemon.restart()
        assert read(parts) == before
        reply = client.find_prefix(MODEL, pack_tokens(TOKENS))
        assert (reply.name, reply.tokens) == ("/t/leaf@v1", len(TOKENS))
        assert parts.is_stale
        parts.give_back()
        assert pin.is_held, "with all that it stands on"
        assert [client.stat(f"/t/{name}").pins for name in ("root", "middle", "leaf")] == [1] * 3
        with client.map_parts("/t/leaf") as again:
            assert read(again) == before
        pin.release()


def test_a_volatile_chain_does_not_keep_the_daemon_from_booting(idle: Daemon) -> None:
    """Its parts are lost one by one, and the first takes the others with it."""
    idle.config = "[behaviour]\nwriteback_delay_s = 86400\n"
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        write_chain(client)
        write(client, "/t/durable", [7] * GRAIN)
        client.sync()
        write(client, "/t/part", [7] * GRAIN + [8], GRAIN, "/t/durable")
        write(client, "/t/root", [9])
        idle.kill()
        idle.start()
        names = [stat.name for stat in client.list("/t")]
        assert names == ["/t/durable", "/t/leaf", "/t/middle", "/t/root"]
        assert client.stat("/t/root").version == 1
        assert [f for page in client.fsck() for f in page.findings] == []


def test_another_model_is_refused_before_anything_is_read(chain: libmem.Client) -> None:
    chain.evict("/t/leaf")
    with pytest.raises(MemError) as refused:
        chain.map_parts("/t/leaf", model=OTHER)
    assert refused.value.errno is Errno.EMODEL
    assert refused.value.detail["model"] == MODEL
    assert chain.stat("/t/leaf").tiers == ("disk",), "not even faulted in"
    assert chain.stat("/t/root").maps == 0


def test_descriptors_are_not_inherited_by_children(chain: libmem.Client) -> None:
    with chain.map_parts("/t/leaf") as parts:
        assert not any(os.get_inheritable(part.fd) for part in parts.parts)


def test_a_part_cannot_be_durable(chain: libmem.Client) -> None:
    header, payload = part_of(LAYERS, TOKENS[: 2 * GRAIN], GRAIN)
    with pytest.raises(MemError) as refused:
        chain.write(
            "/t/part",
            payload,
            type=CubeType.ACTIVATION,
            durability=Durability.DURABLE,
            attributes=attributes_of(header),
            parents=("/t/root",),
        )
    assert refused.value.errno is Errno.EINVAL

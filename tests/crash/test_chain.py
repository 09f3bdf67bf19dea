"""The daemon dies while a chain of KV caches is committed, written back and removed."""

from collections.abc import Callable

import pytest

import libmem
from libmem import CubeType, Durability
from libmem.abi.errors import Errno, MemError
from libmem.abi.failpoints import EXIT_STATUS
from libmem.abi.kv import KvLayers, pack_tokens
from tests.caches import MODEL, attributes_of, part_of
from tests.crash.audit import audit
from tests.e2e.daemon import Daemon, eventually

LAYERS = KvLayers(count=3, heads=4, key_dim=64, value_dim=64)
TOKENS = list(range(40))
LENGTHS = {"/t/root": 16, "/t/part": 32, "/t/leaf": 40}


def write(client: libmem.Client, name: str, base: str = "") -> None:
    """So many tokens, behind those of the base."""
    header, payload = part_of(LAYERS, TOKENS[: LENGTHS[name]], LENGTHS.get(base, 0))
    client.write(
        name,
        payload,
        type=CubeType.ACTIVATION,
        durability=Durability.CACHE if base else Durability.DURABLE,
        attributes=attributes_of(header),
        parents=(base,) if base else (),
    )


STEPS: dict[str, Callable[[libmem.Client], object]] = {
    "namespace": lambda client: client.make_namespace("/t"),
    "root": lambda client: write(client, "/t/root"),
    "part": lambda client: write(client, "/t/part", "/t/root"),
    "leaf": lambda client: write(client, "/t/leaf", "/t/part"),
    "sync": lambda client: client.sync(),
    "unlink": lambda client: client.unlink("/t/root"),
    "more": lambda client: client.make_namespace("/more"),
}


def act(daemon: Daemon) -> list[str]:
    """Take the steps until the daemon dies; those that were acknowledged."""
    done: list[str] = []
    # A sync is repeated until the client's patience ends: nobody starts the daemon again.
    with daemon.connect(timeout_s=5) as client:
        try:
            for name, step in STEPS.items():
                step(client)
                done.append(name)
        except MemError as error:
            if error.errno not in {Errno.ECONNRESET, Errno.ETIMEDOUT, Errno.ECONNREFUSED}:
                raise
    return done


def there(client: libmem.Client) -> list[str]:
    """Which of the chain there are, the root first."""
    listed = {stat.name for stat in client.list("/", is_recursive=True)}
    return [name for name in LENGTHS if name in listed]


@pytest.mark.parametrize(
    ("point", "passage"),
    [
        ("store.stage", 5),
        ("store.stage", 7),
        ("store.commit.after", 4),
        ("store.commit.after", 6),
        ("writeback.settle.before", 1),
        ("writeback.settle.before", 2),
        ("page.rename.after", 3),
        ("page.free.before", 1),
        ("page.free.before", 2),
    ],
)
def test_a_death_at(point: str, passage: int, idle: Daemon) -> None:
    """What is left is what was acknowledged, or a step more, and never without its base."""
    idle.config = "[behaviour]\nwriteback_delay_s = 86400\n"
    idle.start(f"{point}=exit@{passage}")
    done = act(idle)
    assert idle.wait_for_end() == EXIT_STATUS
    idle.start()
    with idle.connect() as client:
        found = there(client)
        assert found == list(LENGTHS)[: len(found)]
        if "unlink" in done:
            assert found == []
        elif "sync" in done:
            assert len(found) in (0, 3), "the unlink happened, or it did not"
        elif "root" in done:
            assert found, "it was durable"
        reply = client.find_prefix(MODEL, pack_tokens(TOKENS))
        assert reply.tokens == (LENGTHS[found[-1]] if found else 0)
        if found:
            with client.map_parts(found[-1], model=MODEL) as parts:
                assert len(parts.parts) == len(found)
        client.sync()
        assert [finding for page in client.fsck() for finding in page.findings] == []
    eventually(lambda: len(idle.page_files()) == len(found), "what was half removed is gone")
    idle.await_rest()
    idle.stop()
    audit(idle.data_dir)

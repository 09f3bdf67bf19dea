"""The daemon dies while a chain of KV caches is committed, written back and removed."""

from collections.abc import Callable

import msgspec
import pytest

import libmem
from libmem import CubeType, Durability
from libmem.abi.errors import Errno, MemError
from libmem.abi.failpoints import EXIT_STATUS
from libmem.abi.kv import KvDtype, KvHeader, KvLayers, layout_of, pack_tokens
from tests.crash.audit import audit
from tests.e2e.daemon import Daemon

MODEL = "ab" * 32
LAYERS = (KvLayers(count=3, heads=4, key_dim=64, value_dim=64),)
TOKENS = list(range(40))
LENGTHS = {"/t/root": 16, "/t/part": 32, "/t/leaf": 40}


def write(client: libmem.Client, name: str, base: str = "") -> None:
    """So many tokens, behind those of the base."""
    start = LENGTHS.get(base, 0)
    tokens = TOKENS[: LENGTHS[name]]
    header = KvHeader(MODEL, KvDtype.FLOAT32, LAYERS, tokens=len(tokens), start=start)
    client.write(
        name,
        pack_tokens(tokens[start:]).ljust(layout_of(header).size_bytes, b"k"),
        type=CubeType.ACTIVATION,
        durability=Durability.CACHE if base else Durability.DURABLE,
        attributes={"kv": msgspec.to_builtins(header)},
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


def there(client: libmem.Client) -> list[str]:
    """Which of the chain there are, the root first."""
    found = []
    for name in LENGTHS:
        try:
            client.stat(name)
        except MemError as error:
            assert error.errno is Errno.ENOENT
        else:
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("point", "passages"),
    [
        ("store.stage", range(3, 8)),
        ("store.commit.after", range(3, 8)),
        ("ledger.settle.before", (6,)),
        ("writeback.settle.before", (1, 2)),
        ("page.rename.after", (2, 3)),
        ("page.free.before", (1, 3)),
    ],
)
def test_a_death_at(point: str, passages: range, idle: Daemon) -> None:
    """Its length is what was acknowledged, or one step more; it is never broken in the middle."""
    idle.config = "[behaviour]\nwriteback_delay_s = 86400\n"
    for passage in passages:
        idle.start(f"{point}=exit@{passage}")
        done: list[str] = []
        with idle.connect() as client:
            for name, step in STEPS.items():
                try:
                    step(client)
                except MemError as error:
                    assert error.errno in {Errno.ECONNRESET, Errno.ETIMEDOUT, Errno.ECONNREFUSED}
                    break
                done.append(name)
        assert idle.wait_for_end() == EXIT_STATUS
        idle.start()
        with idle.connect() as client:
            found = there(client)
            assert found == list(LENGTHS)[: len(found)], "what stands on something that is there"
            if "unlink" in done:
                assert found == []
            elif "sync" in done:
                assert len(found) in (0, 3), "the unlink happened, or it did not"
            elif "root" in done:
                assert found, "it was durable"
            reply = client.find_prefix(MODEL, pack_tokens(TOKENS)) if "namespace" in done else None
            if reply is not None:
                assert reply.tokens == (LENGTHS[found[-1]] if found else 0)
            if found:
                with client.map_parts(found[-1], model=MODEL) as parts:
                    assert len(parts.parts) == len(found)
            client.sync()
            assert [f for page in client.fsck() for f in page.findings] == []
            for name in found[:1]:
                client.unlink(name)
            for space in ("/t", "/more"):
                try:
                    client.remove_namespace(space)
                except MemError as error:
                    assert error.errno is Errno.ENOENT
        idle.await_rest()
        idle.stop()
        audit(idle.data_dir)

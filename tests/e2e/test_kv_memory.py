"""Memory under KV caches: who holds it, when it is free, and what happens where there is none."""

from collections.abc import Iterator

import pytest

import libmem
from libmem import Governance, Quota
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Stat
from tests.e2e.daemon import Daemon, eventually, running, tier
from tests.e2e.modelprocess import ModelProcess, require_transformers

STORE = """
model = make_model("llama")
own = prefill(model, TEXT)
libmem.hf.save_cache(client, "/t/kv", model, own, TEXT)
say(digest(own))
"""
READ = """
model = make_model("llama")
cache = libmem.hf.map_cache(client, "/t/kv", model, token_ids=TEXT)
say(digest(cache))
hear()
say(digest(cache))
twin = copy.deepcopy(cache)  # maps the descriptors once more
say(answer(model, LONGER, past_key_values=twin) == answer(model, LONGER))
hear()
cache = twin = None
gc.collect()
client.info()
say("let go")
hear()
"""
EXPIRED_NS = 1


@pytest.fixture(autouse=True)
def _transformers() -> None:
    require_transformers()


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """As everywhere, but what expires is removed at once."""
    daemon = Daemon()
    daemon.config = "[behaviour]\nexpiry_sweep_s = 0.05\n"
    with running(daemon):
        yield daemon


@pytest.fixture
def kv(shared: Daemon, client: libmem.Client) -> tuple[Stat, str]:
    """The cube /t/kv, and the digest of its rows."""
    with ModelProcess(shared, STORE) as first:
        rows = first.hear()
        first.end()
    return client.stat("/t/kv"), rows


def ram_bytes(client: libmem.Client) -> int:
    """What is in use."""
    return tier(client.info(), "ram").used_bytes


def remove(client: libmem.Client) -> None:
    client.unlink("/t/kv")


def expire(client: libmem.Client) -> None:
    client.set_header("/t/kv", governance=Governance(expires_ns=EXPIRED_NS))


@pytest.mark.parametrize("end", [remove, expire])
def test_memory_goes_when_the_last_lets_go(
    shared: Daemon, client: libmem.Client, kv: tuple[Stat, str], end: object
) -> None:
    stat, rows = kv
    with ModelProcess(shared, READ) as one, ModelProcess(shared, READ) as other:
        assert one.hear() == other.hear() == rows
        with pytest.raises(MemError) as busy:
            client.evict("/t/kv")
        assert busy.value.errno is Errno.EBUSY
        end(client)  # type: ignore[operator]
        with pytest.raises(MemError) as gone:
            client.map_parts("/t/kv")
        assert gone.value.errno is Errno.ENOENT
        for each in (one, other):
            each.tell()
            assert [each.hear(), each.hear()] == [rows, True]
        assert ram_bytes(client) == stat.size_bytes
        one.tell()
        assert one.hear() == "let go"
        assert ram_bytes(client) == stat.size_bytes
        other.tell()
        assert other.hear() == "let go"
        eventually(lambda: ram_bytes(client) == 0, "it is free")


FILLING = """
from libmem.hf import store
write = store._write

def stopping(memory, rows):
    write(memory, rows)
    say("filled")
    hear()

store._write = stopping
model = make_model("llama")
own = prefill(model, TEXT)
libmem.hf.save_cache(client, "/t/new", model, own, TEXT)
"""
STANDING = """
model = make_model("llama")
cache = libmem.hf.map_cache(client, "/t/kv", model)
logits(model, cache, MORE)
libmem.hf.fork(client, "/t/fork", cache, LONGER)
cache = libmem.hf.map_cache(client, "/t/fork", model)
say(cache.prefix.parts_count)
hear()
"""


@pytest.mark.parametrize("program", [FILLING, READ, STANDING], ids=["filling", "mapped", "a fork"])
def test_a_killed_process_holds_nothing(
    shared: Daemon, client: libmem.Client, kv: tuple[Stat, str], program: str
) -> None:
    with ModelProcess(shared, program) as victim:
        victim.hear()
        (session,) = [each for each in client.sessions() if each.maps or each.fills]
        assert session.fills == (program is FILLING)
        victim.kill()
        eventually(lambda: client.info().sessions == 1, "its session is over")
    eventually(lambda: client.stat("/t/kv").maps == 0, "nothing is mapped")
    names = [stat.name for stat in client.list("/t")]
    assert names == (["/t/fork", "/t/kv"] if program is STANDING else ["/t/kv"])
    assert sum(client.evict(name) for name in names) >= kv[0].size_bytes
    assert ram_bytes(client) == 0


IDLE = """
model = make_model("llama")
with attach(model, client) as attached:
    for text in (TEXT, TEXT, LONGER):
        ask(attached, model, text)
    say((attached.stats.hits, attached.stats.stored, attached.stats.problems))
    hear()
"""


def test_a_process_that_waits_for_its_next_prompt_holds_nothing(
    shared: Daemon, client: libmem.Client
) -> None:
    with ModelProcess(shared, IDLE) as idle:
        assert idle.hear() == (2, 2, 0)
        cubes = list(client.list("/t", is_recursive=True))
        assert len(cubes) == 2
        for cube in cubes:
            eventually(lambda name=cube.name: client.stat(name).maps == 0, "it is given back")  # type: ignore[misc]
            assert client.evict(cube.name) == cube.size_bytes


CROWDED = """
model = make_model("llama")
plain = answer(model, TEXT)
with attach(model, client) as attached:
    same = ask(attached, model, TEXT) == plain
    stats = attached.stats
    error = stats.last_error
    say((same, stats.stored, stats.problems, error.errno.name, error.detail["need_bytes"] > 0))
    hear()
    for _ in range(2):
        say((ask(attached, model, TEXT) == plain, stats.hits, stats.stored, stats.problems))
        hear()
"""


def test_no_ram_is_left(idle: Daemon) -> None:
    idle.config = "[ram]\nbudget_bytes = 262144\n[limits]\npin_share_per_uid = 1.0\n"
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        client.write("/t/big", bytes(200_000), type=libmem.CubeType.BLOB)
        pin = client.pin("/t/big")
        with ModelProcess(idle, CROWDED) as crowded:
            assert crowded.hear() == (True, 0, 1, "ENOMEM", True)
            pin.release()
            crowded.tell()
            assert crowded.hear() == (True, 0, 1, 1)
            # Stored by now, but not in RAM, and there is no room to map it.
            for cube in list(client.list("/t", is_recursive=True)):
                client.evict(cube.name)
            with client.pin("/t/big"):
                crowded.tell()
                assert crowded.hear() == (True, 0, 1, 2)
            crowded.tell()
            crowded.end()


def test_no_quota_is_left(shared: Daemon, client: libmem.Client) -> None:
    client.set_quota("/t", Quota(ram_bytes=50_000))
    with ModelProcess(shared, CROWDED) as crowded:
        assert crowded.hear() == (True, 0, 1, "EDQUOT", True)
        assert client.stat_namespace("/t").usage.ram_bytes == 0
        client.set_quota("/t", Quota())
        crowded.tell()
        assert crowded.hear() == (True, 0, 1, 1)
        crowded.tell()
        assert crowded.hear() == (True, 1, 1, 1)
        crowded.tell()
        crowded.end()

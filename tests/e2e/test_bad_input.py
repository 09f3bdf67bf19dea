"""Names, payloads and sizes that do not fit: one clear error each, and nothing is changed."""

from collections.abc import Iterator
from typing import Any

import pytest

import libmem
from libmem import CubeType, Descriptive, Governance, Quota
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import NAME_MAX_BYTES, PAYLOAD_MAX_BYTES
from tests.e2e.daemon import Daemon, eventually, tier
from tests.e2e.raw import RawPeer

KIB, MIB = 1 << 10, 1 << 20

BAD_NAMES = [
    ("", Errno.EINVAL),
    ("x", Errno.EINVAL),
    ("/", Errno.EINVAL),
    ("/t", Errno.EINVAL),
    ("/t/", Errno.EINVAL),
    ("//t/x", Errno.EINVAL),
    ("/t//x", Errno.EINVAL),
    ("/t/../u/x", Errno.EINVAL),
    ("/t/.", Errno.EINVAL),
    ("/../../etc/passwd", Errno.EINVAL),
    ("/t/a\0b", Errno.EINVAL),
    ("/t/a\nb", Errno.EINVAL),
    ("/t/\x1b[31m", Errno.EINVAL),
    ("/t/\u202egpj.exe", Errno.EINVAL),
    ("/t/" + "x" * 5000, Errno.ENAMETOOLONG),
    ("/t/" + "x" * 256, Errno.ENAMETOOLONG),
    ("/t/" + "é" * 128, Errno.ENAMETOOLONG),
    ("/" + "/".join("x" * 100 for _ in range(6)), Errno.ENAMETOOLONG),
    ("/absent/x", Errno.ENOENT),
]
_CALLS = (
    lambda name: c.WriteCube(name=name, payload=b"text"),
    lambda name: c.CreateCube(name=name, size_bytes=10),
    lambda name: c.ReadCube(name=name),
    lambda name: c.MmapCube(name=name),
    lambda name: c.StatCube(name=name),
    lambda name: c.RenameCube(name="/t/there", new_name=name),
    lambda name: c.RenameCube(name=name, new_name="/t/new"),
    lambda name: c.UnlinkCube(name=name),
    lambda name: c.SetHeader(name=name),
    lambda name: c.Explain(name=name),
)


def _raises(errno: Errno, call: c.Call[Any], client: libmem.Client) -> MemError:
    with pytest.raises(MemError) as caught:
        client.call(call)
    assert caught.value.errno is errno, caught.value
    return caught.value


@pytest.mark.parametrize(("name", "errno"), BAD_NAMES)
def test_bad_names_are_refused_everywhere(
    name: str, errno: Errno, shared: Daemon, client: libmem.Client
) -> None:
    """Asked for without libmem, which might check them itself one day."""
    client.write("/t/there", "x")
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        assert [peer.errno_of(call(name)) for call in _CALLS] == [errno] * len(_CALLS)
    assert [stat.name for stat in client.list("/t", is_recursive=True)] == ["/t/there"]


@pytest.mark.parametrize("name", ["", "t", "/", "/a/b", "/..", "/a\0", "/a@v1", "/" + "x" * 256])
def test_bad_namespaces_are_refused(name: str, client: libmem.Client) -> None:
    with pytest.raises(MemError) as caught:
        client.make_namespace(name)
    assert caught.value.errno in (Errno.EINVAL, Errno.ENAMETOOLONG)


def test_names_that_look_odd_but_are_good(client: libmem.Client) -> None:
    """What is not forbidden works all the way: stored, listed, found and removed."""
    names = ["/t/...", "/t/a b", "/t/~", "/t/-rf", "/t/;|$(x)", "/t/日本語", "/t/v1@v", "/t/@"]
    names.append("/t/" + "/".join(["x" * 100] * 4))
    names[-1] += "y" * (NAME_MAX_BYTES - len(names[-1]))
    for name in names:
        client.write(name, f"named {name}")
    assert sorted(stat.name for stat in client.list("/t", is_recursive=True)) == sorted(names)
    for name in names:
        assert client.read(name).decode() == f"named {name}"


def test_text_that_is_none(client: libmem.Client) -> None:
    json = Descriptive(media_type="application/json")
    for payload, descriptive in [
        (b"\xff\xfe", Descriptive()),
        (b"caf\xe9", Descriptive()),
        ("text".encode("utf-16"), Descriptive()),
        (b"a\0b", Descriptive()),
        (b"\xed\xa0\x80", Descriptive()),
        (b"{", json),
        (b"{'a': 1}", json),
        (b'{"a": 1} {"b": 2}', json),
        (b"", json),
        (b"[" * 100_000, json),
        (b"x" * 100_000 + b"\xff", Descriptive()),  # large enough for memory of its own
    ]:
        with pytest.raises(MemError) as caught:
            client.write("/t/x", payload, descriptive=descriptive)
        assert caught.value.errno is Errno.EILSEQ
    fill = client.create("/t/x", 2 * MIB, type=CubeType.PLAINTEXT)
    fill.buffer[:] = b"x" * (2 * MIB - 1) + b"\xff"
    with pytest.raises(MemError) as caught:
        fill.seal()
    assert caught.value.errno is Errno.EILSEQ
    fill.abort()
    assert list(client.list("/t")) == []
    assert client.stat_namespace("/t").usage.disk_bytes == 0


def test_sizes_and_limits(client: libmem.Client) -> None:
    _raises(Errno.EINVAL, c.CreateCube("/t/x", -1), client)
    _raises(Errno.EINVAL, c.CreateCube("/t/x", PAYLOAD_MAX_BYTES + 1), client)
    error = _raises(Errno.ENOSPC, c.CreateCube("/t/x", PAYLOAD_MAX_BYTES), client)
    assert error.detail["need_bytes"] >= PAYLOAD_MAX_BYTES > error.detail["free_bytes"]
    error = _raises(Errno.ENOMEM, c.CreateCube("/t/x", 63 << 30), client)
    assert error.detail["need_bytes"] == 63 << 30 > error.detail["free_bytes"]
    _raises(Errno.EINVAL, c.Search("x", k=0), client)
    _raises(Errno.EINVAL, c.Watch(timeout_ms=-1), client)
    _raises(Errno.EINVAL, c.Fsck(cursor="no hex"), client)
    _raises(Errno.EINVAL, c.Readdir("/t", cursor="/u/x"), client)
    with pytest.raises(MemError) as mode:
        client.write("/t/x", "", governance=Governance(mode=0o7777))
    assert mode.value.errno is Errno.EINVAL
    with pytest.raises(MemError) as type_:
        client.write("/t/x", b"", type=CubeType.PARAMETRIC)
    assert type_.value.errno is Errno.EINVAL


def test_a_quota_holds_in_every_way_to_exceed_it(client: libmem.Client) -> None:
    client.write("/t/x", bytes(64 * KIB), type=CubeType.BLOB)
    used = client.stat_namespace("/t").usage.disk_bytes
    client.set_quota("/t", Quota(disk_bytes=used + 100 * KIB, cubes=2))
    for size in (64 * KIB, 4 * MIB):
        with pytest.raises(MemError) as caught:
            client.write("/t/y", bytes(2 * size), type=CubeType.BLOB)
        assert caught.value.errno is Errno.EDQUOT
        assert caught.value.detail["need_bytes"] > caught.value.detail["free_bytes"] >= 0
    client.write("/t/y", "small")
    with pytest.raises(MemError) as third:
        client.write("/t/z", "one too many")
    assert third.value.errno is Errno.EDQUOT
    client.make_namespace("/u")
    client.write("/u/large", bytes(200 * KIB), type=CubeType.BLOB)
    client.unlink("/t/y")
    with pytest.raises(MemError) as moved:
        client.rename("/u/large", "/t/large")
    assert moved.value.errno is Errno.EDQUOT
    with pytest.raises(MemError) as tighter:
        client.set_quota("/t", Quota(disk_bytes=used - 1))
    assert tighter.value.errno is Errno.EDQUOT
    assert client.stat_namespace("/t").usage.disk_bytes == used
    client.unlink("/u/large")
    client.remove_namespace("/u")


@pytest.fixture
def small(idle: Daemon) -> Iterator[libmem.Client]:
    """A client of a daemon with 1 MiB of RAM and 2 MiB of disk."""
    idle.config = (
        '[ram]\nbudget_bytes = "1 MiB"\n[disk]\nbudget_bytes = "2 MiB"\n'
        "[limits]\npin_share_per_uid = 1.0\n"
    )
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        yield client


def test_the_ram_budget_is_never_exceeded(small: libmem.Client) -> None:
    with pytest.raises(MemError) as large:
        small.create("/t/x", MIB + 1)
    assert large.value.errno is Errno.ENOMEM
    small.write("/t/a", bytes(600 * KIB), type=CubeType.BLOB)
    small.write("/t/b", bytes(600 * KIB), type=CubeType.BLOB)  # evicts the first
    assert small.stat("/t/a").tiers == ("disk",)
    with small.pin("/t/b"), pytest.raises(MemError) as full:
        small.map("/t/a")
    assert full.value.errno is Errno.ENOMEM
    assert full.value.detail == {
        "need_bytes": 600 * KIB,
        "free_bytes": 424 * KIB,
        "pinned_bytes": 600 * KIB,
    }
    with small.map("/t/a") as mapping:
        assert bytes(mapping) == bytes(600 * KIB)
        assert tier(small.info(), "ram").used_bytes <= MIB


def test_the_disk_budget_is_never_exceeded(small: libmem.Client) -> None:
    for name in ("/t/a", "/t/b", "/t/c"):
        small.write(name, bytes(600 * KIB), type=CubeType.BLOB)
    with pytest.raises(MemError) as full:
        small.write("/t/d", bytes(600 * KIB), type=CubeType.BLOB)
    assert full.value.errno is Errno.ENOSPC
    assert full.value.detail["need_bytes"] > full.value.detail["free_bytes"] > 0
    small.unlink("/t/a")
    small.write("/t/d", bytes(600 * KIB), type=CubeType.BLOB)
    assert tier(small.info(), "disk").used_bytes <= 2 * MIB
    eventually(lambda: small.read("/t/d") == bytes(600 * KIB), "it can be read")

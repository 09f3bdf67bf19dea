"""Payloads in memory: mapped to read, and filled in place to write."""

import gc
import mmap
from array import array
from collections.abc import Callable

import numpy as np
import pytest

import libmem
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType
from tests.libmem.fake_daemon import FakeDaemon, refuse

PAYLOAD = bytes(range(256)) * 64


@pytest.fixture
def mapping(client: libmem.Client) -> libmem.Mapping:
    client.write("/a/b", PAYLOAD, type=CubeType.BLOB)
    return client.map("/a/b")


def test_a_mapping_is_the_payload(mapping: libmem.Mapping) -> None:
    with mapping:
        assert bytes(mapping) == mapping[:] == bytes(memoryview(mapping)) == PAYLOAD
        assert len(mapping) == mapping.size_bytes == len(PAYLOAD)
        assert mapping.find(b"\xff") == 255
        assert (mapping.name, mapping.version, mapping.type) == ("/a/b", 1, CubeType.BLOB)
        assert (mapping.id, mapping.attributes) == (b"i" * 16, {"layers": 2})
        assert "/a/b@v1" in repr(mapping)
    assert mapping.closed


def test_a_mapping_is_read_only(mapping: libmem.Mapping) -> None:
    with pytest.raises(TypeError):
        mapping[0] = 1
    assert memoryview(mapping).readonly
    assert not mapping.numpy().flags.writeable


def test_a_private_mapping_is_written_for_its_owner_alone(
    client: libmem.Client, mapping: libmem.Mapping
) -> None:
    with client.map("/a/b", is_private=True) as private:
        private[0] = 255
        private.numpy("uint8", (4, 4096))[3, 4095] = 7
        assert (private[0], private[-1]) == (255, 7)
    assert bytes(mapping) == client.read("/a/b") == PAYLOAD


def test_an_array_shares_the_memory(mapping: libmem.Mapping) -> None:
    whole = mapping.numpy()
    assert whole.tobytes() == PAYLOAD
    shaped = mapping.numpy("<u4", (2, 3), offset_bytes=4)
    assert np.shares_memory(whole, shaped)
    assert shaped.tobytes() == PAYLOAD[4:28]
    assert mapping.numpy("<u4", offset_bytes=len(PAYLOAD) - 7).shape == (1,)
    assert mapping.numpy("uint8", (0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("dtype", "shape", "offset_bytes"),
    [
        ("uint8", (len(PAYLOAD) + 1,), 0),
        ("uint8", (1,), len(PAYLOAD)),
        ("uint8", None, len(PAYLOAD) + 1),
        ("uint8", (1,), -1),
        ("no such type", None, 0),
        ("S0", None, 0),
        ("O", (1,), 0),
    ],
)
def test_an_array_that_does_not_fit_is_refused(
    mapping: libmem.Mapping, dtype: str, shape: tuple[int, ...] | None, offset_bytes: int
) -> None:
    with pytest.raises(MemError) as raised:
        mapping.numpy(dtype, shape, offset_bytes)
    assert raised.value.errno is Errno.EINVAL


def test_memory_is_filled_piece_by_piece(client: libmem.Client) -> None:
    with client.create("/a/pieces", 16) as fill:
        fill.copy_in(memoryview(array("H", [0x6261, 0x6463])), 8)
        fill.copy_in(b"first")
    assert client.read("/a/pieces") == b"first\0\0\0abcd".ljust(16, b"\0")


def test_closing_waits_for_the_views(mapping: libmem.Mapping, daemon: FakeDaemon) -> None:
    array = mapping.numpy()
    with pytest.raises(MemError, match="still in use") as raised:
        mapping.close()
    assert raised.value.errno is Errno.EBUSY
    assert array[1] == 1
    assert daemon.live_sessions()[0].handles == 1
    del array
    mapping.close()
    mapping.close()
    daemon.wait_for(lambda: daemon.live_sessions()[0].handles == 0)


def test_an_error_in_the_block_is_not_hidden_by_its_own_views(mapping: libmem.Mapping) -> None:
    views = []

    def fail() -> None:
        with mapping:
            views.append(memoryview(mapping))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert views[0][2] == 2


def test_a_dropped_mapping_is_given_back_with_the_next_call(
    client: libmem.Client,
    mapping: libmem.Mapping,
    daemon: FakeDaemon,
) -> None:
    session = daemon.live_sessions()[0]
    other = client.map("/a/b")
    assert session.handles == 2
    del other
    gc.collect()
    assert session.handles == 2
    client.info()
    assert session.handles == 1
    assert bytes(mapping) == PAYLOAD


def test_what_was_closed_is_known_to_the_next_call(
    client: libmem.Client, mapping: libmem.Mapping
) -> None:
    with pytest.raises(MemError, match="mapped"):
        client.evict("/a/b")
    mapping.close()
    assert client.evict("/a/b") == len(PAYLOAD)


def test_an_empty_payload_is_read_but_not_mapped(
    client: libmem.Client, daemon: FakeDaemon, open_memory: Callable[[], int]
) -> None:
    client.write("/a/empty", b"")
    assert client.read("/a/empty") == b""
    before = open_memory()
    with pytest.raises(MemError) as raised:
        client.map("/a/empty")
    assert raised.value.errno is Errno.EINVAL
    client.info()
    assert daemon.live_sessions()[0].handles == 0
    assert open_memory() == before


def test_a_size_that_cannot_be_mapped_is_refused(client: libmem.Client) -> None:
    fill = client.create("/a/huge", 1 << 60)
    with pytest.raises(MemError) as raised:
        fill.buffer  # noqa: B018 - asking for it maps it
    assert raised.value.errno is Errno.ENOMEM
    fill.abort()


def test_memory_is_filled_in_place(client: libmem.Client, daemon: FakeDaemon) -> None:
    with client.create("/a/f", 8192, type=CubeType.ACTIVATION) as fill:
        assert (len(fill.buffer), fill.size_bytes, fill.buffer.readonly) == (8192, 8192, False)
        fill.buffer[:3] = b"abc"
        fill.numpy("<u4", (2, 2), offset_bytes=4)[1, 1] = 0x64636261
        results = [fill.result]
    results.append(fill.result)
    assert [result and result.version for result in results] == [None, 1]
    assert client.read("/a/f") == b"abc" + bytes(13) + b"abcd" + bytes(8172)
    assert client.stat("/a/f").type is CubeType.ACTIVATION
    assert daemon.live_sessions()[0].handles == 0


def test_a_fill_may_end_shorter_or_empty(client: libmem.Client) -> None:
    fill = client.create("/a/f", 8192)
    fill.buffer[:3] = b"abc"
    fill.seal(3)
    assert client.read("/a/f") == b"abc"
    with client.create("/a/empty", 0) as empty:
        assert len(empty.buffer) == 0
        assert empty.numpy().shape == (0,)
    assert client.read("/a/empty") == b""


def test_a_fill_is_aborted_by_an_exception(client: libmem.Client, daemon: FakeDaemon) -> None:
    fill = client.create("/a/f", 10)
    views = []

    def fail() -> None:
        with fill:
            views.append(fill.buffer[2:])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    views[0][0] = 1  # for nobody, but not a crash
    daemon.wait_for(lambda: daemon.live_sessions()[0].handles == 0)
    with pytest.raises(MemError) as raised:
        fill.seal()
    assert raised.value.errno is Errno.EBADF
    with pytest.raises(MemError) as raised:
        client.stat("/a/f")
    assert raised.value.errno is Errno.ENOENT


def test_sealing_waits_for_the_views(client: libmem.Client, daemon: FakeDaemon) -> None:
    fill = client.create("/a/f", 10)
    views: list[object] = [fill.numpy()]
    views.append(fill.buffer[3:])
    while views:
        with pytest.raises(MemError, match="still in use") as raised:
            fill.seal()
        assert raised.value.errno is Errno.EBUSY
        views.pop()
    fill.buffer[0] = 65
    assert daemon.count("seal_cube") == 0
    fill.seal()
    assert client.read("/a/f")[:1] == b"A"
    with pytest.raises(MemError) as raised:
        fill.buffer  # noqa: B018
    assert raised.value.errno is Errno.EBADF


def test_a_refused_seal_can_be_tried_again(client: libmem.Client, daemon: FakeDaemon) -> None:
    daemon.script("seal_cube", refuse(MemError(Errno.EBUSY, "mapped elsewhere")))
    fill = client.create("/a/f", 10)
    fill.buffer[0] = 65
    with pytest.raises(MemError, match="elsewhere"):
        fill.seal()
    fill.buffer[1] = 66
    assert fill.seal().version == 1
    assert client.read("/a/f")[:2] == b"AB"


def test_a_seal_refused_at_the_end_of_the_block_is_aborted(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    daemon.script("seal_cube", refuse(MemError(Errno.EVERSION, "another version")))
    with pytest.raises(MemError, match="another version"), client.create("/a/f", 10):
        pass
    daemon.wait_for(lambda: daemon.count("abort_cube") == 1)


def test_a_dropped_fill_is_aborted_with_the_next_call(
    client: libmem.Client, daemon: FakeDaemon, open_memory: Callable[[], int]
) -> None:
    before = open_memory()
    fill = client.create("/a/f", 10)
    fill.buffer[0] = 65
    del fill
    gc.collect()
    client.info()
    assert daemon.live_sessions()[0].handles == 0
    assert open_memory() == before


def test_nothing_is_left_open(
    client: libmem.Client, daemon: FakeDaemon, open_memory: Callable[[], int]
) -> None:
    client.write("/a/b", PAYLOAD)
    before = open_memory()
    for _ in range(20):
        with client.map("/a/b"), client.create("/a/f", mmap.PAGESIZE) as fill:
            fill.buffer[0] = 1
        client.map("/a/b").close()
        client.create("/a/f", 1).abort()
    client.info()
    daemon.wait_for(lambda: daemon.live_sessions()[0].handles == 0)
    assert open_memory() == before

"""Unrelated processes share memory through the daemon; none can change what is sealed."""

import errno
import fcntl
import mmap
import os

import numpy as np
import pytest

import libmem
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from tests.e2e.actor import Actor
from tests.e2e.daemon import Daemon, eventually, tier
from tests.e2e.raw import RawPeer

LARGE = 8 << 20


def test_what_one_process_wrote_another_maps(shared: Daemon, client: libmem.Client) -> None:
    program = f"""
with client.create("/t/large", {LARGE}) as fill:
    fill.buffer[:5] = b"first"
    fill.buffer[-4:] = b"last"
client.write("/t/small", "a note")
say("written")
"""
    with Actor(shared, program) as writer:
        writer.expect("written")
        writer.end()
    with client.map("/t/large") as mapping:
        assert (mapping[:5], mapping[-4:], len(mapping)) == (b"first", b"last", LARGE)
    assert client.read("/t/small") == b"a note"


def test_processes_map_the_same_memory(shared: Daemon, client: libmem.Client) -> None:
    client.write("/t/large", os.urandom(LARGE), type=libmem.CubeType.BLOB)
    used = tier(client.info(), "ram").used_bytes
    program = """
with client.map("/t/large") as mapping:
    say(hash(bytes(mapping)) and mapping.id.hex())
    hear()
"""
    with Actor(shared, program) as one, Actor(shared, program) as two:
        assert one.hear() == two.hear() == client.stat("/t/large").id.hex()
        stat = client.stat("/t/large")
        assert stat.maps == 2
        assert tier(client.info(), "ram").used_bytes == used == LARGE
        one.tell()
        two.tell()
        one.end()
        two.end()


def test_a_reader_cannot_change_sealed_memory(shared: Daemon, client: libmem.Client) -> None:
    payload = os.urandom(1 << 20)
    client.write("/t/large", payload, type=libmem.CubeType.BLOB)
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        mapped = peer.call(c.MmapCube("/t/large"))
        tag, fd = peer.take_descriptor()
        assert tag.handle == mapped.handle
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        for way in (fd, again):
            with pytest.raises(PermissionError):
                os.pwrite(way, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(way, 10)
            with pytest.raises(PermissionError):
                os.ftruncate(way, 2 << 20)
            with pytest.raises(PermissionError):
                mmap.mmap(way, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            with pytest.raises(OSError, match="not permitted") as refused:
                os.posix_fallocate(way, 0, 4 << 20)
            assert refused.value.errno == errno.EPERM
        private = mmap.mmap(again, 0, flags=mmap.MAP_PRIVATE)
        private[:7] = b"my copy"
        assert os.pread(fd, 7, 0) == payload[:7]
        os.close(fd)
        os.close(again)
        private.close()
    assert client.read("/t/large") == payload


def test_private_mappings_keep_their_writes_to_themselves(client: libmem.Client) -> None:
    client.write("/t/large", bytes(1 << 20), type=libmem.CubeType.BLOB)
    with client.map("/t/large", is_private=True) as mine, client.map("/t/large") as theirs:
        mine.numpy(np.uint32)[:] = 7
        assert theirs.find(b"\7") < 0
    assert client.read("/t/large") == bytes(1 << 20)


def test_a_writable_mapping_anywhere_keeps_a_fill_from_being_sealed(
    shared: Daemon, client: libmem.Client
) -> None:
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        made = peer.call(c.CreateCube(name="/t/x", size_bytes=1 << 20))
        _, fd = peer.take_descriptor()
        elsewhere = os.dup(fd)
        view = mmap.mmap(elsewhere, 1 << 20)
        view[:5] = b"still"
        seal = c.SealCube(handle=made.handle)
        assert peer.errno_of(seal) is Errno.EBUSY
        with pytest.raises(MemError) as absent:
            client.stat("/t/x")
        assert absent.value.errno is Errno.ENOENT
        view[:5] = b"ready"
        view.close()
        assert peer.errno_of(seal) == 0
        assert peer.errno_of(seal) is Errno.EBADF
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"after", 0)
        os.close(fd)
        os.close(elsewhere)
    assert client.read("/t/x")[:5] == b"ready"


@pytest.mark.parametrize("what", ["shrunk", "sealed by its writer"])
def test_a_writer_that_meddles_with_the_memory_commits_nothing(
    what: str, shared: Daemon, client: libmem.Client
) -> None:
    with RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        made = peer.call(c.CreateCube(name="/t/x", size_bytes=1 << 20))
        _, fd = peer.take_descriptor()
        if what == "shrunk":
            os.ftruncate(fd, 1 << 10)
        else:
            os.ftruncate(fd, 1 << 10)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        os.close(fd)
        assert peer.errno_of(c.SealCube(handle=made.handle)) is Errno.EINVAL
        assert peer.errno_of(c.AbortCube(handle=made.handle)) == 0
    with pytest.raises(MemError) as absent:
        client.stat("/t/x")
    assert absent.value.errno is Errno.ENOENT
    # Given back by a thread of its own, so after the reply.
    eventually(lambda: tier(client.info(), "ram").used_bytes == 0, "the memory is free")


def test_a_handle_is_good_in_its_own_session_only(shared: Daemon, client: libmem.Client) -> None:
    with client.create("/t/x", 1 << 20) as fill, RawPeer(shared.runtime_dir) as peer:
        peer.bind()
        assert peer.errno_of(c.SealCube(handle=fill.handle)) is Errno.EBADF
        assert peer.errno_of(c.AbortCube(handle=fill.handle)) is Errno.EBADF
        assert peer.errno_of(c.MunmapCube(handle=fill.handle)) is Errno.EBADF
    assert client.stat("/t/x").size_bytes == 1 << 20


def test_memory_outlives_unlink_session_and_daemon(daemon: Daemon) -> None:
    payload = os.urandom(1 << 20)
    with daemon.connect() as client:
        client.write("/t/x", payload, type=libmem.CubeType.BLOB)
        mapping = client.map("/t/x")
        client.unlink("/t/x")
        assert bytes(mapping) == payload
        daemon.restart()
        assert bytes(mapping) == payload
        assert mapping.is_stale
        mapping.close()


def test_children_do_not_inherit_the_memory(client: libmem.Client) -> None:
    """It is received close-on-exec."""
    client.write("/t/x", bytes(1 << 20), type=libmem.CubeType.BLOB)
    with client.map("/t/x"):
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except FileNotFoundError:
                continue
            if target.startswith("/memfd:memosd"):
                assert not os.get_inheritable(int(number))

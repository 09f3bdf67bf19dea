"""Sealed memory: nobody changes it, nothing that its writer does makes it lie or leak."""

import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Iterator

import pytest

from libmem.abi.digest import manifest_of
from libmem.abi.errors import Errno
from memosd.drivers.tiers.ram import RamTier
from memosd.kernel.ports import Frame, FrameTier
from tests.drivers.memory import Memory, raises, stored_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

KEY = bytes(16)
ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


@pytest.fixture
def ram() -> Iterator[FrameTier]:
    """The tier, typed as the kernel sees it."""
    tier = RamTier()
    yield tier
    for key in list(tier.keys()):
        tier.free(key)


@pytest.fixture
def frame(ram: FrameTier) -> Iterator[Frame]:
    """10,000 bytes, not sealed."""
    made = ram.allocate(10_000)
    yield made
    ram.discard(made)


def sealed(ram: FrameTier, content: bytes) -> Frame:
    """A sealed frame with `content`, under no key."""
    made = ram.allocate(len(content))
    os.pwrite(made.fd, content, 0)
    ram.seal(made, len(content))
    return made


def test_fresh_memory_is_zeroed_writable_and_of_its_size(frame: Frame) -> None:
    assert (frame.size_bytes, frame.is_sealed) == (10_000, False)
    assert os.pread(frame.fd, 20_000, 0) == bytes(10_000)
    assert os.pwrite(frame.fd, b"x", 9_999) == 1
    assert not os.get_inheritable(frame.fd)


def test_fresh_memory_cannot_grow(frame: Frame) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(frame.fd, 10_001)
    with pytest.raises(PermissionError):
        os.pwrite(frame.fd, b"xx", 9_999)


def test_sealed_memory_never_changes(ram: FrameTier, frame: Frame) -> None:
    os.pwrite(frame.fd, b"words", 0)
    ram.seal(frame, 10_000)
    assert frame.is_sealed
    assert fcntl.fcntl(frame.fd, fcntl.F_GET_SEALS) & ALL_SEALS == ALL_SEALS
    with pytest.raises(PermissionError):
        os.pwrite(frame.fd, b"x", 0)
    for size_bytes in (9_999, 10_001):
        with pytest.raises(PermissionError):
            os.ftruncate(frame.fd, size_bytes)
    with pytest.raises(PermissionError):
        mmap.mmap(frame.fd, 10_000, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    # A private mapping may be written: that is the reader's own copy.
    with mmap.mmap(
        frame.fd, 10_000, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    ) as private:
        private[0:5] = b"other"
    assert os.pread(frame.fd, 5, 0) == b"words"


def test_a_writable_mapping_left_is_busy_and_changes_nothing(ram: FrameTier, frame: Frame) -> None:
    with mmap.mmap(frame.fd, 10_000) as mapping:
        with raises(Errno.EBUSY):
            ram.seal(frame, 5_000)
        mapping[9_999] = 7  # still there: not cut, not sealed
        assert (frame.size_bytes, frame.is_sealed) == (10_000, False)
    ram.seal(frame, 5_000)
    assert os.fstat(frame.fd).st_size == 5_000


@pytest.mark.parametrize("times", [1, 2, 3])
def test_pages_that_linux_holds_for_a_moment_are_no_mapping(
    ram: FrameTier, frame: Frame, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    left = iter([OSError(errno.EBUSY, "pinned")] * times)
    call = fcntl.fcntl

    def busy(*arguments: int) -> object:
        if (error := next(left, None)) is not None:
            raise error
        return call(*arguments)

    monkeypatch.setattr(fcntl, "fcntl", busy)
    if times == 3:
        with raises(Errno.EBUSY):
            ram.seal(frame, frame.size_bytes)
    ram.seal(frame, frame.size_bytes)
    assert frame.is_sealed


def test_sealing_shorter_gives_the_rest_back(ram: FrameTier, frame: Frame) -> None:
    os.pwrite(frame.fd, b"x" * 10_000, 0)
    ram.seal(frame, 4_097)
    assert (frame.size_bytes, os.fstat(frame.fd).st_size) == (4_097, 4_097)
    assert stored_bytes(frame.fd) == 8_192
    assert ram.hash(frame) == manifest_of(b"x" * 4_097)


@pytest.mark.parametrize("size_bytes", [-1, 10_001])
def test_sealing_at_a_size_it_never_had_is_refused(
    ram: FrameTier, frame: Frame, size_bytes: int
) -> None:
    with raises(Errno.EINVAL):
        ram.seal(frame, size_bytes)
    os.pwrite(frame.fd, b"still writable", 0)


def test_sealing_twice_is_refused(ram: FrameTier, frame: Frame) -> None:
    ram.seal(frame, 10_000)
    with raises(Errno.EINVAL):
        ram.seal(frame, 10_000)


def test_a_writer_that_cuts_the_memory_is_noticed(ram: FrameTier, frame: Frame) -> None:
    os.ftruncate(frame.fd, 100)
    with raises(Errno.EINVAL) as caught:
        ram.seal(frame, 10_000)
    assert "100 of 10000" in caught.value.message
    assert not frame.is_sealed


@pytest.mark.parametrize(
    ("seals", "size_bytes"),
    [
        (fcntl.F_SEAL_SEAL, 10_000),
        (fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL, 10_000),
        (fcntl.F_SEAL_SHRINK, 5_000),
    ],
)
def test_a_writer_that_seals_the_memory_is_noticed(
    ram: FrameTier, frame: Frame, seals: int, size_bytes: int
) -> None:
    fcntl.fcntl(frame.fd, fcntl.F_ADD_SEALS, seals)
    with raises(Errno.EINVAL):
        ram.seal(frame, size_bytes)
    assert not frame.is_sealed


def test_only_sealed_memory_is_hashed_viewed_or_kept(ram: FrameTier, frame: Frame) -> None:
    with raises(Errno.EINVAL):
        ram.hash(frame)
    with raises(Errno.EINVAL):
        ram.view(frame)
    with raises(Errno.EINVAL):
        ram.adopt(KEY, frame)
    assert list(ram.keys()) == []


@pytest.mark.parametrize("size_bytes", [0, 1, 70_000])
def test_a_view_is_read_only_and_outlives_the_frame(ram: FrameTier, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    made = sealed(ram, content)
    view = ram.view(made)
    ram.discard(made)
    assert view.readonly
    assert view == content


def test_adopting_keeps_without_a_copy(ram: FrameTier, memory: Memory) -> None:
    made = sealed(ram, b"words")
    fd = made.fd
    ram.adopt(KEY, made)
    assert made.fd == fd
    target = memory.blank(5)
    ram.load(KEY, target, 5, manifest_of(b"words").digest)
    assert os.pread(target, 5, 0) == b"words"
    ram.adopt(KEY, made)  # again: the same frame is not closed
    assert os.fstat(made.fd).st_size == 5


def test_a_frame_that_is_replaced_or_freed_is_closed(ram: FrameTier) -> None:
    first, second = sealed(ram, b"1"), sealed(ram, b"2")
    ram.adopt(KEY, first)
    ram.adopt(KEY, second)
    assert first.fd == -1
    assert os.pread(second.fd, 2, 0) == b"2"
    ram.free(KEY)
    assert second.fd == -1
    assert list(ram.keys()) == []


def test_a_frame_that_is_taken_is_the_callers(ram: FrameTier) -> None:
    made = sealed(ram, b"words")
    ram.adopt(KEY, made)
    assert ram.take(KEY) is made
    assert list(ram.keys()) == []
    ram.free(KEY)
    assert os.pread(made.fd, 5, 0) == b"words"  # not closed by that
    ram.discard(made)
    with raises(Errno.ENOENT):
        ram.take(KEY)


def test_discarding_twice_closes_once(ram: FrameTier) -> None:
    made = ram.allocate(1)
    number = made.fd
    ram.discard(made)
    taken = os.memfd_create("takes the same number")
    ram.discard(made)
    assert taken == number
    os.close(taken)  # fails when the second discard closed it


def test_stored_payloads_are_sealed_frames(ram: FrameTier, memory: Memory) -> None:
    ram.store(KEY, memory.holding(b"words"), manifest_of(b"words"))
    kept = ram.take(KEY)
    assert kept.is_sealed
    with pytest.raises(PermissionError):
        os.pwrite(kept.fd, b"x", 0)
    ram.discard(kept)


@pytest.mark.parametrize("size_bytes", [1, 4_096, 4_097, 10_000])
def test_the_charge_is_what_the_memory_takes(ram: FrameTier, size_bytes: int) -> None:
    made = sealed(ram, b"x" * size_bytes)
    assert ram.charge_bytes(size_bytes) == stored_bytes(made.fd)
    ram.discard(made)


def test_hashing_fills_no_holes(ram: FrameTier) -> None:
    made = ram.allocate(4 << 20)
    ram.seal(made, 4 << 20)
    assert ram.hash(made) == manifest_of(bytes(4 << 20))
    assert stored_bytes(made.fd) == 0
    ram.discard(made)


def test_memory_cannot_be_executed_where_the_kernel_can_forbid_it(
    ram: FrameTier, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    make = os.memfd_create

    def old_kernel(name: str, flags: int) -> int:
        tried.append(flags)
        if flags & 0x8:
            raise OSError(errno.EINVAL, "unknown flag")
        return make(name, flags)

    monkeypatch.setattr(os, "memfd_create", old_kernel)
    for _ in range(2):
        ram.discard(ram.allocate(1))
    # Asked for, refused, done without, and not asked for again.
    assert [bool(flags & 0x8) for flags in tried] == [True, False, False]


def test_no_descriptors_left_is_emfile(ram: FrameTier) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.memfd_create("probe")
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with raises(Errno.EMFILE):
            ram.allocate(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_memory_is_enomem(ram: FrameTier, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, size_bytes: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with raises(Errno.ENOMEM):
        ram.allocate(1)

"""Copying, hashing and checking bytes behind descriptors."""

import errno
import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libmem.abi.digest import manifest_of
from libmem.abi.errors import Errno
from libmem.abi.limits import PAGE_BYTES
from memosd.drivers.tiers import payload
from tests.drivers.memory import Memory, raises, stored_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

KIB = 1024
SIZES = [0, 1, 256 * KIB, 256 * KIB + 1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 2_500_000]
HALVED = [16 * PAGE_BYTES - 1, 16 * PAGE_BYTES, 17 * PAGE_BYTES + 1]


@pytest.mark.parametrize("size_bytes", [*SIZES, *HALVED])
def test_streamed_digests_are_the_abis(memory: Memory, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    assert payload.manifest_behind(memory.holding(content), size_bytes) == manifest_of(content)


def test_without_a_second_thread_one_hashes_all(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    content = os.urandom(HALVED[-1])
    fd = memory.holding(content)
    monkeypatch.setattr(threading.Thread, "start", refused)
    assert payload.manifest_behind(fd, len(content)) == manifest_of(content)


def test_hashing_fills_no_holes(memory: Memory) -> None:
    fd = memory.blank(8 * PAGE_BYTES)
    assert payload.manifest_behind(fd, 8 * PAGE_BYTES) == manifest_of(bytes(8 * PAGE_BYTES))
    assert stored_bytes(fd) == 0


def test_a_payload_that_ends_early_is_corrupt(memory: Memory) -> None:
    fd = memory.holding(bytes(PAGE_BYTES + 10))
    with raises(Errno.ECORRUPT) as caught:
        payload.manifest_behind(fd, PAGE_BYTES + 11)
    assert caught.value.detail == {"page": 1}


def test_the_page_at_fault_is_named(memory: Memory) -> None:
    content = bytearray(os.urandom(3 * PAGE_BYTES + 7))
    manifest = manifest_of(bytes(content))
    for at, page in [(0, 0), (PAGE_BYTES - 1, 0), (PAGE_BYTES, 1), (len(content) - 1, 3)]:
        content[at] ^= 0x10
        with raises(Errno.ECORRUPT) as caught:
            payload.check_pages(memory.holding(bytes(content)), manifest)
        assert caught.value.detail == {"page": page}
        content[at] ^= 0x10
    payload.check_pages(memory.holding(bytes(content)), manifest)


def test_of_the_beginning_every_page_is_checked_as_a_whole(memory: Memory) -> None:
    content = bytearray(os.urandom(3 * PAGE_BYTES + 7))
    manifest = manifest_of(bytes(content))
    limits = {1: 1, PAGE_BYTES: 1, PAGE_BYTES + 1: 2, len(content): 4}
    for page in range(4):
        at = min((page + 1) * PAGE_BYTES, len(content)) - 1  # the page's last byte
        content[at] ^= 0x10
        fd = memory.holding(bytes(content))
        for limit_bytes, pages in limits.items():
            if page >= pages:  # what was not asked for is not looked at
                read = b"".join(payload.checked_pages(fd, manifest, limit_bytes))
                assert read == content[: pages * PAGE_BYTES]
                continue
            with raises(Errno.ECORRUPT) as caught:
                list(payload.checked_pages(fd, manifest, limit_bytes))
            assert caught.value.detail == {"page": page}
        content[at] ^= 0x10


def test_a_beginning_that_ends_early_is_corrupt(memory: Memory) -> None:
    manifest = manifest_of(bytes(2 * PAGE_BYTES))
    with raises(Errno.ECORRUPT):
        fd = memory.holding(bytes(PAGE_BYTES + 1))
        list(payload.checked_pages(fd, manifest, PAGE_BYTES + 1))


def test_the_digest_alone_is_checked_too(memory: Memory) -> None:
    digest = manifest_of(b"words").digest
    payload.check_digest(memory.holding(b"words"), 5, digest)
    with raises(Errno.ECORRUPT):
        payload.check_digest(memory.holding(b"wards"), 5, digest)


BLOCK = 4 * KIB


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stored=st.sets(st.integers(0, 30), max_size=12),
    size_bytes=st.integers(1, 32 * BLOCK),
    cut=st.tuples(st.integers(0, 32 * BLOCK), st.integers(0, 32 * BLOCK)),
)
def test_a_copy_is_the_stored_ranges_and_no_more(
    memory: Memory, stored: set[int], size_bytes: int, cut: tuple[int, int]
) -> None:
    source, target = memory.blank(size_bytes), memory.blank(size_bytes)
    for block in stored:
        if block * BLOCK < size_bytes:
            # Not zeros: a copy that skipped them would not be noticed.
            os.pwrite(source, b"\xa5" * min(BLOCK, size_bytes - block * BLOCK), block * BLOCK)
    start, end = (min(at, size_bytes) for at in sorted(cut))
    payload.copy(source, target, start, end)
    expected = bytearray(size_bytes)
    expected[start:end] = os.pread(source, end - start, start) if end > start else b""
    assert os.pread(target, size_bytes + 1, 0) == bytes(expected)
    assert stored_bytes(target) <= stored_bytes(source)
    memory.close()


def test_a_source_that_ends_while_it_is_copied_is_an_error(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = memory.holding(b"x" * 10)
    monkeypatch.setattr(os, "sendfile", lambda *arguments: 0)
    with pytest.raises(OSError, match="ends at byte 0") as caught:
        payload.copy(source, memory.blank(10), 0, 10)
    assert caught.value.errno == errno.EIO


def test_short_copies_are_continued(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(1000)
    sendfile = os.sendfile

    def reluctant(target: int, source: int, at: int, count: int) -> int:
        return sendfile(target, source, at, min(count, 77))

    monkeypatch.setattr(os, "sendfile", reluctant)
    target = memory.blank(1000)
    payload.copy(memory.holding(content), target, 0, 1000)
    assert os.pread(target, 1000, 0) == content


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, Errno.ENOSPC),
        (errno.EDQUOT, Errno.ENOSPC),
        (errno.ENOMEM, Errno.ENOMEM),
        (errno.EMFILE, Errno.EMFILE),
        (errno.ENFILE, Errno.EMFILE),
        (errno.EIO, Errno.EIO),
        (errno.EROFS, Errno.EIO),
    ],
)
def test_errors_of_the_system_get_our_numbers(code: int, expected: Errno) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    with raises(expected) as caught, payload.os_errors("page file x"):
        fail()
    assert caught.value.message == f"page file x: {os.strerror(code)}"

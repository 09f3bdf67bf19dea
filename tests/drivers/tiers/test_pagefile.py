"""The page file's format: its bytes, and that no damage to them passes."""

import os
import struct

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libmem.abi.digest import manifest_of
from libmem.abi.errors import Errno
from libmem.abi.limits import PAGE_BYTES
from memosd.drivers.tiers import pagefile, payload
from tests.drivers.memory import Memory, raises, stored_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

KEY = bytes.fromhex("00112233445566778899aabbccddeeff")
SIZES = [0, 1, 4095, 4096, 4097, PAGE_BYTES, PAGE_BYTES + 1, 2 * PAGE_BYTES + 5]


def written(memory: Memory, content: bytes) -> int:
    """A page file with `content`."""
    fd = memory.blank(0)
    pagefile.write(fd, memory.holding(content), KEY, manifest_of(content))
    return fd


def whole(fd: int) -> bytes:
    """Every byte of the file."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def test_the_format_is_this_byte_by_byte(memory: Memory) -> None:
    content = b"w" * (PAGE_BYTES + 5)
    padded = PAGE_BYTES + 4096
    digests = xxhash.xxh3_128_digest(content[:PAGE_BYTES]) + xxhash.xxh3_128_digest(b"wwwww")
    trailer = (
        b"MEMOSPG1"
        + (1).to_bytes(4, "little")
        + (1 << 20).to_bytes(4, "little")
        + KEY
        + len(content).to_bytes(8, "little")
        + digests
    )
    footer = (72).to_bytes(8, "little") + xxhash.xxh3_128_digest(trailer) + b"MEMOSEND"
    assert whole(written(memory, content)) == content.ljust(padded, b"\0") + trailer + footer


@pytest.mark.parametrize("size_bytes", SIZES)
def test_the_file_says_what_it_is(memory: Memory, size_bytes: int) -> None:
    content = os.urandom(size_bytes)
    fd = written(memory, content)
    assert os.fstat(fd).st_size == pagefile.file_bytes(size_bytes)
    assert pagefile.read_trailer(fd) == pagefile.Trailer(KEY, manifest_of(content))
    assert os.pread(fd, size_bytes, 0) == content


def check(fd: int) -> None:
    """What every reader does."""
    payload.check_pages(fd, pagefile.read_trailer(fd).manifest)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size_bytes=st.sampled_from(SIZES), place=st.floats(0, 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(
    memory: Memory, size_bytes: int, place: float, bit: int
) -> None:
    fd = written(memory, os.urandom(size_bytes))
    total_bytes = os.fstat(fd).st_size
    # Half of the flips into trailer and footer, small as they are.
    kept = total_bytes - pagefile.file_bytes(0) - size_bytes // PAGE_BYTES * 16
    at = int(place * 2 * (total_bytes - 1))
    at = at if at < total_bytes else kept + (at - total_bytes) * (total_bytes - kept) // total_bytes
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ (1 << bit)]), at)
    padding = range(size_bytes, -(-size_bytes // 4096) * 4096)
    if at in padding:
        check(fd)  # no part of the payload: harmless
    else:
        with raises(Errno.ECORRUPT):
            check(fd)
    memory.close()


@pytest.mark.parametrize("size_bytes", [0, 1, 4097])
def test_every_flipped_bit_of_trailer_and_footer_is_found(memory: Memory, size_bytes: int) -> None:
    fd = written(memory, os.urandom(size_bytes))
    total_bytes = os.fstat(fd).st_size
    for at in range(-(-size_bytes // 4096) * 4096, total_bytes):
        old = os.pread(fd, 1, at)
        for bit in range(8):
            os.pwrite(fd, bytes([old[0] ^ (1 << bit)]), at)
            with raises(Errno.ECORRUPT):
                pagefile.read_trailer(fd)
        os.pwrite(fd, old, at)
    check(fd)


@pytest.mark.parametrize("size_bytes", [0, 1, 4097])
def test_a_file_cut_anywhere_is_refused(memory: Memory, size_bytes: int) -> None:
    image = whole(written(memory, os.urandom(size_bytes)))
    for length in range(len(image)):
        with raises(Errno.ECORRUPT):
            pagefile.read_trailer(memory.holding(image[:length]))
        memory.close()


def test_a_file_with_more_at_its_end_is_refused(memory: Memory) -> None:
    image = whole(written(memory, b"words"))
    for extra in (b"\0", image, b"\0" * 4096):
        with raises(Errno.ECORRUPT):
            pagefile.read_trailer(memory.holding(image + extra))
    with raises(Errno.ECORRUPT):  # a whole trailer and footer, but not where they belong
        pagefile.read_trailer(memory.holding(b"\0" * 4096 + image))


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (8, struct.pack("<I", 2), "format 2"),
        (12, struct.pack("<I", 1 << 21), "pages of 2097152"),
        (32, struct.pack("<Q", 4097), "by its trailer"),
        (32, struct.pack("<Q", (1 << 64) - 1), "by its trailer"),
    ],
)
def test_a_trailer_of_another_kind_is_refused_though_whole(
    memory: Memory, at: int, value: bytes, said: str
) -> None:
    image = bytearray(whole(written(memory, b"words")))
    trailer = image[4096:-32]
    trailer[at : at + len(value)] = value
    image[4096:] = trailer + image[-32:-24] + xxhash.xxh3_128_digest(trailer) + image[-8:]
    with raises(Errno.ECORRUPT) as caught:
        pagefile.read_trailer(memory.holding(bytes(image)))
    assert said in caught.value.message


def test_a_trailer_with_more_digests_than_pages_is_refused_though_whole(memory: Memory) -> None:
    image = whole(written(memory, b"words"))
    trailer = image[4096:-32] + bytes(16)
    footer = struct.pack("<Q16s8s", len(trailer), xxhash.xxh3_128_digest(trailer), b"MEMOSEND")
    forged = image[: 4096 - 16] + trailer + footer
    assert len(forged) == len(image)
    with raises(Errno.ECORRUPT):
        pagefile.read_trailer(memory.holding(forged))


def test_a_sparse_payload_is_a_sparse_file(memory: Memory) -> None:
    size_bytes = 64 * PAGE_BYTES
    fd = memory.blank(0)
    source = memory.blank(size_bytes)
    pagefile.write(fd, source, KEY, payload.manifest_behind(source, size_bytes))
    assert stored_bytes(fd) <= 2 * 4096
    check(fd)

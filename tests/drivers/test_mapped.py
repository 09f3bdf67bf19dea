"""Letting go of a mapped file's pages: memory goes down, the bytes stay."""

import mmap
from pathlib import Path

import pytest

from memosd.drivers.mapped import MappedFile

SIZE_BYTES = 64 << 20


def file_bytes() -> int:
    """File-backed memory of this process, by the kernel's own other account of it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssFile in /proc/self/status")


@pytest.fixture
def mapping(tmp_path: Path) -> mmap.mmap:
    path = tmp_path / "table"
    path.write_bytes(b"\xa5" * SIZE_BYTES)
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), SIZE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)


def test_a_large_mapping_is_let_go_and_reads_the_same(mapping: mmap.mmap, tmp_path: Path) -> None:
    mapped = MappedFile(tmp_path / "table")
    assert sum(mapping[:: mmap.PAGESIZE]) == 0xA5 * SIZE_BYTES // mmap.PAGESIZE
    before = file_bytes()
    assert mapped.trim(keep_bytes=0)
    assert file_bytes() < before - SIZE_BYTES // 2
    assert mapping[SIZE_BYTES - 1] == 0xA5


def test_what_is_small_is_left_alone(mapping: mmap.mmap, tmp_path: Path) -> None:
    assert mapping[0] == 0xA5
    assert not MappedFile(tmp_path / "table").trim(keep_bytes=1 << 40)


def test_a_file_that_is_not_mapped_is_no_error(tmp_path: Path) -> None:
    assert not MappedFile(tmp_path / "other").trim(keep_bytes=0)

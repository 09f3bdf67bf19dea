"""Room at the end of a table's file: added where little is left, and never in anybody's way."""

import os
from pathlib import Path

import pytest

from memosd.drivers.reserve import Reserve
from memosd.drivers.store import LmdbStore

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is all table."""
    file = tmp_path / "table.mdb"
    file.write_bytes(b"table")
    return file


def test_zeros_are_added_where_little_is_left(path: Path) -> None:
    reserve = Reserve(path)
    reserve.keep(5)
    assert path.read_bytes() == b"table" + bytes(MIB)
    reserve.keep(MIB // 2)
    assert path.stat().st_size == MIB + 5
    reserve.keep(MIB)
    assert path.stat().st_size == 2 * MIB + 5
    assert path.stat().st_blocks * 512 >= 2 * MIB, "written, not a hole"
    reserve.close()
    reserve.close()


def test_no_room_for_it_is_no_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> int:
        raise OSError(28, "No space left on device")

    reserve = Reserve(path)
    monkeypatch.setattr(os, "pwrite", no_room)
    reserve.keep(5)
    assert path.read_bytes() == b"table"
    reserve.close()


def test_a_commit_does_not_make_the_file_longer(tmp_path: Path) -> None:
    path = tmp_path / "table.mdb"
    store = LmdbStore(path, ("cubes",), 1 << 26)
    lengths = []
    for number in range(200):
        store.stage({"cubes": {b"%05d" % number: bytes(9000)}})()
        store.settle()
        lengths.append(path.stat().st_size)
    assert len(set(lengths)) <= 4, "a MiB at a time"
    store.close()
    again = LmdbStore(path, ("cubes",), 1 << 26)
    assert again.count("cubes") == 200
    again.close()

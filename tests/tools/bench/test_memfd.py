"""The physical limits really do what they are timed for."""

import os
from pathlib import Path

import pytest

from memosd.tools.bench import memfd

SIZE_BYTES = (3 << 20) + 17


@pytest.fixture
def payload() -> bytes:
    return os.urandom(SIZE_BYTES)


def test_filling_copies_the_payload(payload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = _keep_memory(monkeypatch)
    assert memfd.fill(payload) > 0
    assert _content(kept) == payload


def test_saving_copies_and_leaves_no_file(
    payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = _keep_memory(monkeypatch)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    assert memfd.fill_and_save(payload, tmp_path / "saved") > 0
    assert synced == [len(payload)]
    assert _content(kept) == payload
    assert list(tmp_path.iterdir()) == []


def test_reading_takes_the_first_bytes_of_the_file(
    payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cube.page"
    path.write_bytes(payload + b"trailer")
    memfd.drop_from_page_cache(path)
    kept = _keep_memory(monkeypatch)
    assert memfd.read_into(path, len(payload)) > 0
    assert _content(kept) == payload


def test_no_descriptor_is_left(payload: bytes) -> None:
    before = os.listdir("/proc/self/fd")
    memfd.fill(payload)
    assert os.listdir("/proc/self/fd") == before


def _keep_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Duplicates of the memfds that are made, so that they can be read afterwards."""
    kept: list[int] = []
    create = os.memfd_create

    def create_and_keep(name: str, flags: int) -> int:
        fd = create(name, flags)
        kept.append(os.dup(fd))
        return fd

    monkeypatch.setattr(os, "memfd_create", create_and_keep)
    return kept


def _content(kept: list[int]) -> bytes:
    [fd] = kept
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)

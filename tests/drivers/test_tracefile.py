"""Trace files: new, private, whole lines, and never outside their folder."""

import errno
import os
from pathlib import Path

import pytest

from libmem.abi.errors import Errno, MemError
from memosd.drivers.tracefile import TraceFolder


@pytest.fixture
def folder(tmp_path: Path) -> TraceFolder:
    """One that does not exist yet."""
    return TraceFolder(tmp_path / "traces")


def test_what_is_appended_is_there(folder: TraceFolder, tmp_path: Path) -> None:
    file = folder.create("a.jsonl")
    file.append(b"one\n")
    file.append(b"two\n")
    file.close()
    path = tmp_path / "traces/a.jsonl"
    assert file.path == str(path)
    assert path.read_bytes() == b"one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_no_file_is_written_over(folder: TraceFolder) -> None:
    folder.create("a").close()
    with pytest.raises(MemError) as caught:
        folder.create("a")
    assert caught.value.errno is Errno.EEXIST


def test_no_link_is_followed(folder: TraceFolder, tmp_path: Path) -> None:
    folder.create("a").close()
    (tmp_path / "traces/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MemError):
        folder.create("link")
    assert not (tmp_path / "elsewhere").exists()


def test_what_does_not_fit_is_not_there_in_part(
    folder: TraceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder.create("a")
    file.append(b"one\n")
    pwrite = os.pwrite

    def fill_up(fd: int, data: memoryview, at: int) -> int:
        if at > 4:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data[:2], at)

    monkeypatch.setattr(os, "pwrite", fill_up)
    with pytest.raises(OSError, match="full"):
        file.append(b"two\n")
    monkeypatch.undo()
    file.append(b"three\n")
    file.close()
    assert (tmp_path / "traces/a").read_bytes() == b"one\nthree\n"

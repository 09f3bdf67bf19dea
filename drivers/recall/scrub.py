"""Emptying SQLite's write-ahead log so that nothing that was deleted is left in the file.

Called by `index.py` alone, which keeps SQLite from doing it by itself. Owns the bytes of the
file that SQLite does not use: when SQLite moves a row from one page to another, to balance its
tree, the old copy stays in the unused middle of the old page, and `secure_delete` does not reach
it once the row is deleted. Such copies come to be only in pages that were written, so to look at
the pages in the log, each time it is emptied, is to look at all of them.

The middle of a page: header, cell pointers, [unused], cells. SQLite's file format, section 1.6;
the log's, section 4.
"""

import os
from pathlib import Path
from typing import Final

import apsw

__all__ = ["empty_log", "log_bytes"]

_LOG_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_FILE_HEADER_BYTES: Final = 100
"""At the start of page 1, before its page header."""

_PAGE_HEADER_BYTES: Final = {0x02: 12, 0x05: 12, 0x0A: 8, 0x0D: 8}
"""By the page's first byte: inner and leaf pages of indexes and tables. Others are no trees."""


def log_bytes(path: Path) -> int:
    """The size of the log beside the database at `path`."""
    try:
        return _log_of(path).stat().st_size
    except FileNotFoundError:
        return 0


def empty_log(db: apsw.Connection, fd: int, path: Path) -> None:
    """Move the log into the file, zero what lies unused there, truncate the log.

    `fd` is the file, open for reading and writing for as long as `db` is: to close it earlier
    would release SQLite's locks. A crash in between leaves the log, so opening does it again.
    Errors: apsw.Error, OSError.
    """
    page_bytes, pages = _logged_pages(path)
    _checkpoint(db, "full")
    scrubbed = [_scrub(fd, page, page_bytes) for page in sorted(pages)]
    if any(scrubbed):
        os.fdatasync(fd)
    _checkpoint(db, "truncate")


def _checkpoint(db: apsw.Connection, mode: str) -> None:
    busy, *_ = db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()[0]
    if busy:
        raise apsw.BusyError("the write-ahead log is in use")


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _logged_pages(path: Path) -> tuple[int, set[int]]:
    """(page size, page numbers); frames that were never committed do no harm here."""
    size = log_bytes(path)
    if size <= _LOG_HEADER_BYTES:
        return 0, set()
    with _log_of(path).open("rb") as log:
        page_bytes = int.from_bytes(log.read(_LOG_HEADER_BYTES)[8:12], "big")
        pages = set()
        for at in range(_LOG_HEADER_BYTES, size, _FRAME_HEADER_BYTES + page_bytes):
            log.seek(at)
            pages.add(int.from_bytes(log.read(4), "big"))
    return page_bytes, pages


def _scrub(fd: int, number: int, page_bytes: int) -> bool:
    """Zero the unused middle of a page; False where there was nothing to zero."""
    start = (number - 1) * page_bytes
    page = os.pread(fd, page_bytes, start)
    header = _FILE_HEADER_BYTES if number == 1 else 0
    if len(page) < page_bytes or page[header] not in _PAGE_HEADER_BYTES:
        return False
    cells = int.from_bytes(page[header + 3 : header + 5], "big")
    used = header + _PAGE_HEADER_BYTES[page[header]] + 2 * cells
    content = int.from_bytes(page[header + 5 : header + 7], "big") or 1 << 16
    middle = page[used:content]
    if content > page_bytes or middle.count(0) == len(middle):
        return False
    os.pwrite(fd, bytes(len(middle)), start + used)
    return True

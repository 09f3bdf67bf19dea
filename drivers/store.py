"""The durable tables: one LMDB file, one writer, no lock file.

Owns the file of the page table. Called by the kernel thread only, save the commit that `stage`
returns, which runs on an I/O thread. The data directory is locked by the daemon, so no other
process has the file open; LMDB's own lock file and reader table are switched off (`lock=False`).

Why reads may go on while another thread commits, without LMDB's reader table:

- A write transaction copies every page that it changes (copy on write) and takes pages for reuse
  only from those freed by transactions older than the last committed one. The snapshot of the
  last commit, on which the read transaction stands, therefore stays whole.
- The read transaction took its roots when it began, and `settle` begins a new one only after the
  commit is over: nobody reads a meta page while it is written.
- `stage` refuses to begin a second write transaction before `settle`, so a read snapshot is
  never more than one commit behind.

A commit is durable when it returns: data pages, fsync, meta page through O_DSYNC. What fails
before the meta page is written leaves no trace.

LMDB checks little of what it maps: a damaged file may end the process. While the store is open, a
mark `<name>.open` lies beside it. It says "starting" until `booted`; from then on it is empty, and
a fatal signal (SIGBUS, SIGSEGV, SIGABRT) writes into it where it struck. Whoever finds a mark that
says something, or finds the table file shorter than its meta page says, sends `probe.py` ahead. A
daemon that died of its table therefore says so at the next start, instead of dying again; one that
was killed while it served, or whose machine stopped, starts without reading everything.
Format: docs/format.md, "The table".
"""

import faulthandler
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import lmdb

from libmem.abi import failpoints
from libmem.abi.errors import Errno, MemError
from memosd.drivers.mapped import MappedFile
from memosd.drivers.reserve import Reserve

__all__ = ["LmdbStore"]

Changes = Mapping[str, Mapping[bytes, bytes | None]]

_META_PAGES: Final = 2
_READS_PER_TRIM: Final = 2000
_KEPT_BYTES: Final = 128 << 20
"""The table's pages in this process's memory, looked at every so many reads: each brings up to
64 KiB of neighbours along, so the two bound what a busy daemon seems to use."""
_STARTING: Final = b"starting\n"
_PROBE_NEWS_S: Final = 5.0
"""How often whoever waits hears that a probe is still under way."""
_NEARLY_FULL_BLOCKS: Final = 16
_FULL: Final = (lmdb.MapFullError, lmdb.DiskError)
_BROKEN: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)


class LmdbStore:
    """Ordered tables of bytes with atomic, durable commits: the kernel's `Store`.

    `path` is the file, `tables` the names of its tables (made where missing), `map_bytes` the
    most that the file may grow to. All of a file is read first where there is reason for doubt;
    `on_probe` is then told the reason, at once and every few seconds until it is done.
    Errors at opening: ECORRUPT (not a table file, truncated, damaged), ENOSPC, EIO.
    """

    def __init__(
        self,
        path: Path,
        tables: tuple[str, ...],
        map_bytes: int,
        on_probe: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._path = path
        self._mark = path.with_name(path.name + ".open")
        self._map_bytes = map_bytes
        self._on_probe = on_probe
        self._last_words: BinaryIO | None = None
        self._staged: lmdb.Transaction[bytes] | None = None
        self._used_bytes: int | None = None
        try:
            if path.exists():
                self._check_file()
            else:
                self._create(tables)
            self._leave_mark()
            self._env = self._open(tables)
            self._tables = {table: self._env.open_db(table.encode()) for table in tables}
            self._reserve = Reserve(path)
        except (lmdb.Error, OSError) as error:
            raise _opening_failed(path, error) from error
        self._mapped = MappedFile(path)
        self._reads = 0
        self._read = self._env.begin()

    def _leave_mark(self) -> None:
        self._mark.touch(mode=0o600)
        try:
            self._mark.write_bytes(_STARTING)
        except OSError as error:
            # A full disk is no reason not to serve what is on it.
            if error.errno != Errno.ENOSPC:
                raise

    def booted(self) -> None:
        """The start is over. From now on a fatal signal of this process goes into the mark, and
        nothing else sends a probe ahead at the next start. Errors: EIO."""
        try:
            self._last_words = self._mark.open("ab", buffering=0)
            # Other threads run on while their stacks are walked: that could crash by itself.
            faulthandler.enable(self._last_words, all_threads=False)
            self._last_words.truncate(0)
        except OSError as error:
            raise MemError(Errno.EIO, f"{self._mark}: cannot be written: {error}") from error

    def get(self, table: str, key: bytes) -> bytes | None:
        """The settled value of `key`, or None. Errors: ECORRUPT, EIO."""
        self._reads += 1
        if self._reads > _READS_PER_TRIM:
            self._reads = 0
            self._mapped.trim(_KEPT_BYTES)
        try:
            return self._read.get(key, None, self._tables[table])
        except lmdb.Error as error:
            raise _reading_failed(table, error) from error

    def scan(self, table: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Settled rows with key >= start, ascending; ends quietly when `settle` passes it by.

        Errors: ECORRUPT, EIO.
        """
        snapshot = self._read
        try:
            cursor = snapshot.cursor(self._tables[table])
            if cursor.set_range(start):
                yield from cursor.iternext()
        except lmdb.Error as error:
            # The snapshot was given up by `settle`: the cursor died with it.
            if snapshot is self._read:
                raise _reading_failed(table, error) from error

    def last_key(self, table: str) -> bytes | None:
        """The greatest settled key, or None in an empty table. Errors: ECORRUPT, EIO."""
        try:
            cursor = self._read.cursor(self._tables[table])
            return cursor.key() if cursor.last() else None
        except lmdb.Error as error:
            raise _reading_failed(table, error) from error

    def count(self, table: str) -> int:
        """How many settled rows a table has."""
        return self._read.stat(self._tables[table])["entries"]

    def stage(self, changes: Changes) -> Callable[[], None]:
        """Begin a transaction, apply `changes`, return the blocking commit.

        The commit may run on any thread. Errors, of both: ENOSPC, EIO; EBUSY when the one
        before is not settled.
        """
        if self._staged is not None:
            raise MemError(Errno.EBUSY, "the table has a commit under way already")
        try:
            failpoints.hit("store.stage")
            transaction = self._env.begin(write=True)
        except (lmdb.Error, OSError) as error:
            raise _writing_failed(error) from error
        try:
            self._apply(transaction, changes)
        except lmdb.Error as error:
            transaction.abort()
            raise _writing_failed(error) from error
        self._staged = transaction
        return lambda: self._commit(transaction)

    def settle(self) -> None:
        """Let reads see what was committed; give up a staged transaction that was not."""
        if self._staged is not None:
            self._staged.abort()  # nothing to do where it was committed
            self._staged = None
        try:
            # Assigned before the old one goes: a scan tells by this that its snapshot has passed.
            old, self._read = self._read, self._env.begin()
        except lmdb.PanicError:
            # A meta page could not be written: LMDB refuses all transactions until it is opened
            # again. The snapshot at hand stays readable; `stage` says EIO.
            return
        old.abort()
        self._used_bytes = None

    def used_bytes(self) -> int:
        """Bytes of the pages in use. The file is larger by its free pages, which are reused."""
        if self._used_bytes is None:
            tables = [self._read.stat(table) for table in self._tables.values()]
            tables.append(self._read.stat())
            pages = sum(
                stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
                for stat in tables
            )
            self._used_bytes = (pages + _META_PAGES) * tables[-1]["psize"]
        return self._used_bytes

    def close(self) -> None:
        """Give up what is staged and close the file. No calls after this one."""
        if self._staged is not None:
            self._staged.abort()
            self._staged = None
        self._read.abort()
        self._env.close()
        self._reserve.close()
        if self._last_words is not None:
            faulthandler.disable()
            self._last_words.close()
        self._mark.unlink(missing_ok=True)

    def _apply(self, transaction: "lmdb.Transaction[bytes]", changes: Changes) -> None:
        for table, rows in changes.items():
            db = self._tables[table]
            puts = [(key, value) for key, value in rows.items() if value is not None]
            if len(puts) < len(rows):
                for key, value in rows.items():
                    if value is None:
                        transaction.delete(key, db=db)
            # In one go: a call for each row would cost more than the row.
            transaction.cursor(db).putmulti(puts)

    def _commit(self, transaction: "lmdb.Transaction[bytes]") -> None:
        try:
            failpoints.hit("store.commit.before")
            self._reserve.keep(self._extent_bytes(self._env))
            transaction.commit()
        except (lmdb.Error, OSError) as error:
            transaction.abort()
            # LMDB calls it EIO when the disk takes only a part of a write, being full.
            if os.statvfs(self._path.parent).f_bavail < _NEARLY_FULL_BLOCKS:
                raise MemError(Errno.ENOSPC, f"the table's disk is full: {error}") from error
            raise _writing_failed(error) from error
        failpoints.hit("store.commit.after")

    def _create(self, tables: tuple[str, ...]) -> None:
        """Make the file under another name first: a file of that name is then always whole, and
        an empty one, which LMDB would take for a new table, is damage."""
        young = self._path.with_name(self._path.name + ".new")
        young.unlink(missing_ok=True)
        with self._environment(young, tables) as env:
            for table in tables:
                env.open_db(table.encode())
        young.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _check_file(self) -> None:
        """What can be said before LMDB sees the file, which takes an empty one for a new one."""
        size_bytes = self._path.stat().st_size
        if size_bytes < _META_PAGES * mmap.PAGESIZE:
            raise MemError(Errno.ECORRUPT, f"{self._path}: truncated to {size_bytes} bytes")
        last_words = self._mark.read_text(errors="replace") if self._mark.exists() else ""
        if last_words:
            is_start = last_words.encode() == _STARTING
            told = last_words.partition("\n")[0]  # "Fatal Python error: Bus error"
            self._probe("the last start did not end" if is_start else told)

    def _open(self, tables: tuple[str, ...]) -> lmdb.Environment:
        env = self._environment(self._path, tables)
        # Not damaged for certain: LMDB does not write pages at the end that were taken and given
        # back within one transaction.
        if self._path.stat().st_size < self._extent_bytes(env):
            self._probe("the table file is shorter than it may be")
        return env

    @staticmethod
    def _extent_bytes(env: lmdb.Environment) -> int:
        """Where the last commit's table ends in the file."""
        return (env.info()["last_pgno"] + 1) * env.stat()["psize"]

    def _probe(self, reason: str) -> None:
        _probe(self._path, lambda: self._on_probe(reason))

    def _environment(self, path: Path, tables: tuple[str, ...]) -> lmdb.Environment:
        return lmdb.open(
            str(path),
            map_size=self._map_bytes,
            subdir=False,
            mode=0o600,
            # Scans are ten times faster from a cold disk than page by page.
            readahead=True,
            max_dbs=len(tables),
            lock=False,
        )


def _probe(path: Path, news: Callable[[], None]) -> None:
    """Read the file in another process first. Errors: ECORRUPT."""
    with subprocess.Popen(
        [sys.executable, "-m", "memosd.drivers.probe", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as probe:
        stderr = None
        while stderr is None:
            news()
            try:
                _, stderr = probe.communicate(timeout=_PROBE_NEWS_S)
            except subprocess.TimeoutExpired:
                continue
    if probe.returncode:
        said = stderr.strip().rpartition("\n")[2] or "no message"
        how = f"status {probe.returncode}"
        if probe.returncode < 0:
            how = f"killed by {signal.Signals(-probe.returncode).name}"
        raise MemError(
            Errno.ECORRUPT, f"{path}: damaged: reading all of it ended with {how}: {said}"
        )


def _opening_failed(path: Path, error: Exception) -> MemError:
    if isinstance(error, _BROKEN):
        return MemError(Errno.ECORRUPT, f"{path}: not a whole table file: {error}")
    return MemError(_writing_failed(error).errno, f"{path}: cannot be opened: {error}")


def _reading_failed(table: str, error: lmdb.Error) -> MemError:
    errno = Errno.ECORRUPT if isinstance(error, _BROKEN) else Errno.EIO
    return MemError(errno, f"table {table!r} cannot be read: {error}")


def _writing_failed(error: Exception) -> MemError:
    is_full = isinstance(error, _FULL) or getattr(error, "errno", 0) == Errno.ENOSPC
    errno = Errno.ENOSPC if is_full else Errno.EIO
    return MemError(errno, f"the table cannot be written: {error}")

"""The lexical index: SQLite FTS5 behind the kernel's `Index` protocol.

Owns one SQLite file, derived state that the kernel can rebuild from its table at any time. All
calls come from one thread. Invariants: a stamp is committed with the documents it stands for, or
neither is; what was removed is in no byte of the file when `apply` returns.

    state      stamp: the log sequence that the rest reflects
    document   one row per cube: doc, id, namespace, version, name, passages
    passage    the text; a cube's passages have the numbers doc .. doc + passages - 1
    words_N    FTS5 over the passages of namespace N (its statistics are its own)

Numbers are given in the order of writing, so that a larger one is newer. Why FTS5, and why not
the SQLite that comes with Python: docs/design/0003-lexical-index.md.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from libmem.abi import failpoints
from libmem.abi.errors import Errno, MemError
from libmem.abi.index import IndexDocument, IndexHit
from memosd.drivers.recall.documents import DocumentRows
from memosd.drivers.recall.ranking import Ranking
from memosd.drivers.recall.scrub import empty_log, log_bytes

__all__ = ["LexicalIndex"]

_APPLICATION_ID: Final = 0x6D656D78  # "memx"
_SCHEMA_VERSION: Final = 1
_CACHE_KIB: Final = 16 << 10
_LOG_BYTES: Final = 16 << 20
"""How long the write-ahead log may grow."""
_REPLAN_AFTER: Final = 5_000
"""Cubes written until the common words' frequencies are looked up again."""

_SETTINGS: Final = (
    # No other process reads the file; without this SQLite keeps a shared-memory file beside it.
    "PRAGMA locking_mode = exclusive",
    "PRAGMA journal_mode = wal",
    # A power cut may lose the last commits, never tear one: the kernel replays from the stamp.
    "PRAGMA synchronous = normal",
    "PRAGMA secure_delete = on",
    # Only scrub.py empties the log; see also _prepare.
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA temp_store = memory",
    f"PRAGMA cache_size = -{_CACHE_KIB}",
)
_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE state (stamp INTEGER NOT NULL);
INSERT INTO state VALUES (0);
CREATE TABLE document (
    doc INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, namespace INTEGER NOT NULL,
    version INTEGER NOT NULL, name TEXT NOT NULL, passages INTEGER NOT NULL
);
CREATE INDEX document_name ON document (namespace, name);
CREATE TABLE passage (passage INTEGER PRIMARY KEY, text TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_SCHEMA_VERSION};
COMMIT;
"""

_UNUSABLE: Final = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError)
_ERRNO: Final[tuple[tuple[type[apsw.Error], Errno], ...]] = (
    (apsw.FullError, Errno.ENOSPC),
    (apsw.NoMemError, Errno.ENOMEM),
    (apsw.CorruptError, Errno.ECORRUPT),
    (apsw.NotADBError, Errno.ECORRUPT),
    (apsw.Error, Errno.EIO),
)


class _Session(NamedTuple):
    """The open file, its writing and its reading half."""

    db: apsw.Connection
    rows: DocumentRows
    ranking: Ranking
    fd: int
    stack: ExitStack
    """Closes the connection, then the descriptor."""


class LexicalIndex:
    """BM25 over cubes' texts. `path` is its file; nothing happens before `open`.

    Errors of every call: ENOSPC, ENOMEM, EIO, and ECORRUPT when the file turns out to be damaged,
    which every call repeats until `open` has discarded it. After a failed `apply` the stamp that
    `open` returns tells whether it happened; it never happened in part.
    """

    name = "sqlite-fts5"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: _Session | None = None
        self._is_damaged = False
        self._written = 0

    def open(self) -> int:
        """Open or make the file; return its stamp, 0 when it is new or had to be discarded."""
        self.close()
        with self._guard():
            try:
                return self._attach()
            except _UNUSABLE:
                self._discard()
                return self._attach()

    def apply(
        self, stamp: int, documents: Sequence[IndexDocument], removed: Iterable[bytes]
    ) -> None:
        """Removals first, then documents, then the stamp, in one transaction.

        Safe to repeat. A removal waits for the disk: its bytes leave the file before this returns.
        """
        session = self._opened()
        db = session.db
        with self._guard():
            with _transaction(session):
                was_there = session.rows.replace(documents, removed)
                db.execute("UPDATE state SET stamp = ?", (stamp,))
                failpoints.hit("index.commit.before")
            failpoints.hit("index.commit.after")
            if was_there or log_bytes(self._path) > _LOG_BYTES:
                empty_log(db, session.fd, self._path)
        self._written += len(documents)
        if self._written >= _REPLAN_AFTER:
            self._written = 0
            session.ranking.forget_frequencies()

    def search(self, query: str, namespaces: Mapping[int, str], limit: int) -> list[IndexHit]:
        """The `limit` best cubes for any of the query's words, best first.

        `namespaces` says where to look: each with the subtree that names must lie in, such as
        `/notes/a` (itself and what is below), "" for all. Every query is taken as plain words.
        """
        session = self._opened()
        with self._guard():
            chosen = {
                ns: prefix for ns, prefix in namespaces.items() if ns in session.rows.namespaces
            }
            return session.ranking.search(query, chosen, limit)

    def clear(self) -> None:
        """Forget everything, damaged or not; the stamp is 0."""
        with self._guard():
            self._discard()
            self._attach()

    def close(self) -> None:
        """Write the log back into the file and let go of it; a damaged file goes."""
        with self._guard():
            if self._is_damaged:
                self._discard()
            elif self._session is not None:
                try:
                    empty_log(self._session.db, self._session.fd, self._path)
                finally:
                    self._let_go()

    def _opened(self) -> _Session:
        if self._is_damaged:
            raise MemError(Errno.ECORRUPT, "the lexical index is damaged; open it to begin anew")
        if self._session is None:
            raise MemError(Errno.EIO, "the lexical index is not open")
        return self._session

    def _attach(self) -> int:
        with ExitStack() as stack:
            # SQLite gives its files the umask's mode; these hold what cubes of any mode hold.
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            db = apsw.Connection(str(self._path))
            stack.callback(db.close, True)
            stamp = _prepare(db)
            empty_log(db, fd, self._path)  # where a crash came between a removal and this
            rows, ranking = DocumentRows(db), Ranking(db)
            self._session = _Session(db, rows, ranking, fd, stack.pop_all())
        return stamp

    def _let_go(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.stack.close()

    def _discard(self) -> None:
        self._let_go()
        for suffix in ("", "-wal", "-shm", "-journal"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._is_damaged = False

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """SQLite's and the operating system's errors as MemError; damage is remembered."""
        try:
            yield
        except apsw.Error as error:
            errno = next(code for kind, code in _ERRNO if isinstance(error, kind))
            self._is_damaged |= errno is Errno.ECORRUPT
            raise MemError(errno, f"lexical index: {error}") from error
        except OSError as error:
            errno = Errno.ENOSPC if error.errno == Errno.ENOSPC else Errno.EIO
            raise MemError(errno, f"lexical index: {error}") from error


def _prepare(db: apsw.Connection) -> int:
    """Settings and, in a new file, tables; the stamp. Errors: one of _UNUSABLE."""
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    for setting in _SETTINGS:
        db.execute(setting)
    if db.execute("SELECT count(*) FROM sqlite_schema").get == 0:
        db.execute(_SCHEMA)
    marks = (db.pragma("application_id"), db.pragma("user_version"))
    if marks != (_APPLICATION_ID, _SCHEMA_VERSION):
        raise apsw.NotADBError(f"another program's or version's file: {marks}")
    return int(db.execute("SELECT stamp FROM state").get)


@contextmanager
def _transaction(session: _Session) -> Iterator[None]:
    db = session.db
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        session.rows.reload()
        raise

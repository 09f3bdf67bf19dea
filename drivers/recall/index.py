"""The recall index: words, vectors and facts behind the kernel's `Index` protocol.

Owns one SQLite file (schema.py), derived state that the kernel can rebuild from its table at any
time, and what is kept of it in memory. All calls come from one thread. Invariants: a stamp is
committed with the documents it stands for, or neither is; what was removed is in no byte of the
file when `apply` returns; memory follows commits, never the other way round. Why FTS5, and why not
the SQLite that comes with Python: docs/design/0003-lexical-index.md; the ranking: 0005.

numpy and what needs it are imported when the index is opened, on its own thread: a daemon is ready
before that.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import apsw

from libmem.abi import failpoints
from libmem.abi.errors import Errno, MemError
from libmem.abi.index import (
    IndexCounts,
    IndexDocument,
    IndexHit,
    IndexPassage,
    IndexQuestion,
    IndexVectors,
)
from memosd.drivers.recall.documents import DocumentRows
from memosd.drivers.recall.passages import shown
from memosd.drivers.recall.schema import prepare
from memosd.drivers.recall.scrub import empty_log, log_bytes

if TYPE_CHECKING:
    from memosd.drivers.recall.catalogue import Catalogue
    from memosd.drivers.recall.search import Plan, Search
    from memosd.drivers.recall.vectors import VectorRows

__all__ = ["RecallIndex"]

_LOG_BYTES: Final = 16 << 20
"""How long the write-ahead log may grow."""

_DAMAGE: Final = (
    apsw.ConstraintError,  # the numbers in the file contradict each other
    apsw.CorruptError,
    apsw.NotADBError,
    UnicodeDecodeError,  # only clean text is ever put in
)
_STRANGE: Final = (
    apsw.MismatchError,
    apsw.SQLError,
    apsw.TooBigError,
    # What rows set off that SQLite reads without a complaint, and nobody here has written.
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""Damage as well, or a fault of this program."""
_ERRNO: Final[tuple[tuple[type[apsw.Error], Errno], ...]] = (
    (apsw.FullError, Errno.ENOSPC),
    (apsw.NoMemError, Errno.ENOMEM),
    (apsw.Error, Errno.EIO),
)


class _Session(NamedTuple):
    """The open file, its writing and its reading half, and what is in memory."""

    db: apsw.Connection
    rows: DocumentRows
    vectors: VectorRows
    catalogue: Catalogue
    search: Search
    fd: int
    stack: ExitStack
    """Closes the connection, then the descriptor."""


class RecallIndex:
    """How cubes' texts are found. `path` is its file; nothing happens before `open`.

    Errors of every call: ENOSPC, ENOMEM, EIO, and ECORRUPT when the file turns out to be damaged,
    which every call repeats until `open` has discarded it; ESTALE where it is not open, as after a
    commit that memory could not follow. After a failed `apply` the stamp that
    `open` returns tells whether it happened; it never happened in part.
    """

    name = "recall"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session: _Session | None = None
        self._is_damaged = False
        self._blamed: set[str] = set()
        """Errors that were taken for damage, and where: one that comes again was none."""
        self._is_log_due = False
        """The log could not be emptied last; what was removed may lie in it."""
        self._numbers_from = 0
        """Where a file that takes the place of a discarded one begins to count: somebody may still
        hold numbers of that one's passages."""
        self.counts = IndexCounts()

    def open(self) -> int:
        """Open or make the file; return its stamp, 0 when it is new or had to be discarded."""
        with self._guard():
            if self._is_damaged:
                self._discard()
            self._let_go()
            try:
                return self._attach()
            except (*_DAMAGE, *_STRANGE):
                self._discard()
                return self._attach()

    # -- writing -------------------------------------------------------------------------------

    def apply(
        self, stamp: int, documents: Sequence[IndexDocument], removed: Iterable[bytes]
    ) -> None:
        """Removals first, then documents, then the stamp, in one transaction.

        A document that is among the removals stays; of an older text of it nothing does.
        Safe to repeat. A removal waits for the disk: its bytes leave the file before this returns.
        """
        session = self._opened()
        with self._guard():
            with _transaction(session):
                changes = session.rows.replace(documents, removed)
                session.db.execute("UPDATE state SET stamp = ?", (stamp,))
                failpoints.hit("index.commit.before")
            self._follow(session, session.catalogue.follow, changes)
            failpoints.hit("index.commit.after")
            self._bound_log(session, is_due=changes.was_removed)

    def use_model(self, model: str) -> None:
        """Vectors of any other model are not compared from now on, and wait to be replaced."""
        session = self._opened()
        with self._guard():
            if model == session.vectors.model.fingerprint:
                return
            with _transaction(session):
                session.vectors.use(model)
            self._follow(session, session.catalogue.load_vectors)

    def keep(self, vectors: Mapping[int, IndexVectors]) -> None:
        """Keep vectors by passage; those of passages that are gone, or of a model that is not in
        use, are passed over. Waits for no disk. Errors: EINVAL for what are no vectors."""
        session = self._opened()
        with self._guard():
            model = session.vectors.model.fingerprint
            wanted = {n: each for n, each in vectors.items() if model and each.model == model}
            there = session.catalogue.present(wanted.keys())
            with _transaction(session):
                kept = session.vectors.keep({number: wanted[number] for number in there})
            self._follow(session, session.catalogue.keep, kept)
            self._bound_log(session, is_due=False)

    def waiting(self, limit: int, characters: int, skip: Set[int]) -> list[IndexPassage]:
        """Passages without vectors of `counts.model`, of all namespaces in turn, the newest first:
        at most `limit`, and `characters` together unless the first alone is longer."""
        session = self._opened()
        with self._guard():
            texts = session.search.texts
            return [
                IndexPassage(number, namespace, shown(texts.stored(number)))
                for number, namespace in session.catalogue.waiting(limit, characters, skip)
            ]

    # -- searching -----------------------------------------------------------------------------

    def plan(self, question: IndexQuestion) -> Plan:
        """What the query means: whom and when it names, and the text that is left of it."""
        session = self._opened()
        with self._guard():
            return session.search.plan(question)

    def match(self, plan: Plan) -> None:
        """Find by words; the plan keeps what was found."""
        session = self._opened()
        with self._guard():
            session.search.match(plan)

    def rank(self, plan: Plan, vector: IndexVectors | None) -> list[IndexHit]:
        """Best first; among equals the newest. docs/recall.md says what each signal means."""
        session = self._opened()
        with self._guard():
            return session.search.rank(plan, vector)

    # -- the file ------------------------------------------------------------------------------

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
                    self._empty_log(self._session.db, self._session.fd)
                finally:
                    self._let_go()

    def _opened(self) -> _Session:
        if self._is_damaged:
            raise MemError(Errno.ECORRUPT, "the recall index is damaged; open it to begin anew")
        if self._session is None:
            raise MemError(Errno.ESTALE, "the recall index is not open")
        return self._session

    def _attach(self) -> int:
        from memosd.drivers.recall.catalogue import Catalogue
        from memosd.drivers.recall.search import Search
        from memosd.drivers.recall.vectors import VectorRows

        with ExitStack() as stack:
            # SQLite gives its files the umask's mode; these hold what cubes of any mode hold.
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            db = apsw.Connection(str(self._path))
            stack.callback(db.close, True)
            stamp = prepare(db)
            numbers = {"from": self._numbers_from}
            db.execute("UPDATE state SET next = :from WHERE next < :from", numbers)
            try:
                self._empty_log(db, fd)  # where a crash came between a removal and this
            except (apsw.FullError, OSError) as error:
                if _errno_of(error) is not Errno.ENOSPC:
                    raise
            rows, vectors = DocumentRows(db), VectorRows(db)
            catalogue = Catalogue(rows, vectors)
            search = Search(db, rows, vectors, catalogue)
            self.counts = catalogue.counts()
            self._session = _Session(db, rows, vectors, catalogue, search, fd, stack.pop_all())
        return stamp

    def _follow(self, session: _Session, work: Callable[..., None], *args: object) -> None:
        """Do in memory what was committed; where that fails, nothing but the file is right."""
        try:
            work(*args)
            self.counts = session.catalogue.counts()
        except BaseException:
            self._let_go()
            raise

    def _bound_log(self, session: _Session, *, is_due: bool) -> None:
        if is_due or self._is_log_due or log_bytes(self._path) > _LOG_BYTES:
            self._empty_log(session.db, session.fd)

    def _empty_log(self, db: apsw.Connection, fd: int) -> None:
        self._is_log_due = True
        empty_log(db, fd, self._path)
        self._is_log_due = False

    def _let_go(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._numbers_from = session.rows.next_number
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
        except (apsw.Error, OSError, *_DAMAGE, *_STRANGE) as error:
            if self._is_damage(error):
                self._is_damaged = True
                what = f"recall index: {error} ({_place_of(error)})"
                raise MemError(Errno.ECORRUPT, what) from error
            if isinstance(error, apsw.Error | OSError):
                raise MemError(_errno_of(error), f"recall index: {error}") from error
            raise

    def _is_damage(self, error: Exception) -> bool:
        """What is strange is taken for damage once: where the file that was made anew sets it off
        as well, it was none, and the next one is not to be discarded, too."""
        if isinstance(error, _DAMAGE) or not isinstance(error, _STRANGE):
            return isinstance(error, _DAMAGE)
        is_new = (place := _place_of(error)) not in self._blamed
        self._blamed.add(place)
        return is_new


def _errno_of(error: apsw.Error | OSError) -> Errno:
    if isinstance(error, OSError):
        return Errno.ENOSPC if error.errno == Errno.ENOSPC else Errno.EIO
    return next(code for kind, code in _ERRNO if isinstance(error, kind))


def _place_of(error: Exception) -> str:
    """Kind and line, for people and to be known again."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"


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
        session.vectors.reload()
        raise

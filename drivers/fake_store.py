"""A store in memory that fails on demand, for the tests of what lies above.

Fulfils the kernel's `Store` as `store.py` does, with the same visibility: what a commit wrote is
durable at once and readable after `settle`. `reopen` is the crash: it keeps what was committed
and nothing else.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping

from libmem.abi.errors import Errno, MemError

__all__ = ["FakeStore"]

Changes = Mapping[str, Mapping[bytes, bytes | None]]
_Rows = dict[bytes, bytes]


class FakeStore:
    """Ordered tables of bytes in memory.

    `fail_stage` and `fail_commit` make the next such call raise; `commits` counts the good ones.
    """

    def __init__(self, tables: tuple[str, ...]) -> None:
        self.commits = 0
        self._durable: dict[str, _Rows] = {table: {} for table in tables}
        self._settled: dict[str, _Rows] = {table: {} for table in tables}
        self._keys: dict[str, list[bytes]] = {table: [] for table in tables}
        self._unsettled: list[Changes] = []
        self._staged: Changes | None = None
        self._generation = 0
        self._failures: dict[str, Errno] = {}

    def fail_stage(self, errno: Errno) -> None:
        """The next `stage` raises; nothing is staged."""
        self._failures["stage"] = errno

    def fail_commit(self, errno: Errno) -> None:
        """The next commit raises; nothing of it is visible, now or after `reopen`."""
        self._failures["commit"] = errno

    def reopen(self) -> "FakeStore":
        """The store as a process finds it after a crash of this one."""
        young = FakeStore(tuple(self._durable))
        for table, rows in self._durable.items():
            young._durable[table] = dict(rows)
            young._settled[table] = dict(rows)
            young._keys[table] = sorted(rows)
        return young

    def get(self, table: str, key: bytes) -> bytes | None:
        """The settled value of `key`, or None."""
        return self._settled[table].get(key)

    def scan(self, table: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Settled rows with key >= start, ascending; ends quietly when `settle` passes it by."""
        generation, keys, rows = self._generation, self._keys[table], self._settled[table]
        at = bisect_left(keys, start)
        while generation == self._generation and at < len(keys):
            yield keys[at], rows[keys[at]]
            at += 1

    def last_key(self, table: str) -> bytes | None:
        """The greatest settled key, or None in an empty table."""
        keys = self._keys[table]
        return keys[-1] if keys else None

    def count(self, table: str) -> int:
        """How many settled rows a table has."""
        return len(self._keys[table])

    def stage(self, changes: Changes) -> Callable[[], None]:
        """Take `changes`, return the commit. Errors: EBUSY, or what `fail_stage` planned."""
        if self._staged is not None:
            raise MemError(Errno.EBUSY, "the table has a commit under way already")
        self._fail_as_planned("stage")
        self._staged = staged = {table: dict(rows) for table, rows in changes.items()}
        return lambda: self._commit(staged)

    def settle(self) -> None:
        """Let reads see what was committed; give up what is staged and was not."""
        for changes in self._unsettled:
            for table, rows in changes.items():
                for key, value in rows.items():
                    self._settle_row(table, key, value)
        self._unsettled.clear()
        self._staged = None
        self._generation += 1

    def used_bytes(self) -> int:
        """The bytes of all settled keys and values."""
        return sum(
            len(key) + len(value) for rows in self._settled.values() for key, value in rows.items()
        )

    def close(self) -> None:
        """Give up what is staged; what was committed stays for `reopen`."""
        self._staged = None

    def _commit(self, changes: Changes) -> None:
        self._fail_as_planned("commit")
        if changes is not self._staged:
            raise MemError(Errno.EIO, "the transaction was given up before its commit")
        for table, rows in changes.items():
            durable = self._durable[table]
            for key, value in rows.items():
                if value is None:
                    durable.pop(key, None)
                else:
                    durable[key] = bytes(value)
        self._unsettled.append(changes)
        self.commits += 1

    def _settle_row(self, table: str, key: bytes, value: bytes | None) -> None:
        rows, keys = self._settled[table], self._keys[table]
        if value is None:
            if rows.pop(key, None) is not None:
                keys.pop(bisect_left(keys, key))
            return
        if key not in rows:
            insort(keys, key)
        rows[key] = bytes(value)

    def _fail_as_planned(self, step: str) -> None:
        errno = self._failures.pop(step, None)
        if errno is not None:
            raise MemError(errno, f"injected into {step}")

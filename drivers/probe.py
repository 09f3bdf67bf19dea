"""Reads a table file from end to end, in a process of its own: `python -m memosd.drivers.probe`.

LMDB trusts the pages that it maps. Where a file was cut short or a page damaged, it may not raise
an error but end the process: SIGBUS past the end of the file, abort() at a failed assertion. So
`store.py` sends this process ahead when there is reason for doubt, and turns its death into a
clear error. Nothing is changed. Exit status 0: every row can be read, and a transaction begun.
"""

import os
import sys

import lmdb

_ROOM_BYTES = 64 << 20


def main(path: str) -> None:
    """Read every row of every table, then let LMDB look for free pages, and give that up."""
    map_bytes = os.path.getsize(path) + _ROOM_BYTES
    with lmdb.open(
        path, map_size=map_bytes, subdir=False, create=False, max_dbs=64, lock=False
    ) as env:
        with env.begin() as transaction:
            names = [name for name, _ in transaction.cursor()]
        for name in names:
            table = env.open_db(name, create=False)
            with env.begin() as transaction:
                found = sum(1 for _ in transaction.cursor(table))
                wanted = transaction.stat(table)["entries"]
            if found != wanted:
                raise lmdb.CorruptedError(f"table {name!r} has {found} rows of {wanted}")
            with env.begin(write=True) as transaction:
                transaction.put(b"\0", b"", db=table)
                transaction.abort()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (lmdb.Error, OSError) as error:
        sys.exit(str(error))

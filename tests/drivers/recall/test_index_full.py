"""An index on a disk that is really full: it can be searched, and goes on when there is room."""

from tests.drivers.memory import in_tiny_file_system

_FULL = """
import os
from pathlib import Path
from libmem.abi.errors import Errno, MemError
from memosd.drivers.recall.index import RecallIndex
from tests.drivers.recall.lexicon import document, ids, stored
path = Path("/mnt/index.db")
index = RecallIndex(path)
index.open()
index.apply(1, [document("a", "heron secretive")], [])

def fails(*args):
    try:
        index.apply(*args)
    except MemError as error:
        assert error.errno is Errno.ENOSPC, error
        return True
    return False

with open("/mnt/ballast", "wb", buffering=0) as ballast:
    try:
        while ballast.write(bytes(512)):
            pass
    except OSError:
        pass
    long = [document(f"{n}", f"stork w{n} " * 500) for n in range(50)]
    assert fails(2, long, [])
    assert ids(index, "heron") == ["a"], "it goes on without being opened again"
    assert index.open() == 1
    assert ids(index, "heron") == ["a"]
    assert fails(2, long, [b"a"])
os.unlink("/mnt/ballast")
index.apply(2, long, [b"a"])
assert ids(index, "heron") == []
assert b"secretive" not in stored(path)
print("done")
"""


def test_a_full_disk_leaves_an_index_that_can_be_searched() -> None:
    done = in_tiny_file_system(_FULL, 1 << 20)
    assert done.stdout == "done\n", done.stderr

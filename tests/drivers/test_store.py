"""The LMDB store over crashes, full disks and damaged files."""

import fcntl
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from libmem.abi import failpoints
from libmem.abi.errors import Errno
from memosd.drivers.store import LmdbStore
from memosd.kernel.ports import Store
from tests.drivers.memory import in_tiny_file_system, python, raises

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

TABLES = ("meta", "cubes")
MIB = 1 << 20

CHILD = """
import sys
from pathlib import Path
from memosd.drivers.store import LmdbStore
store = LmdbStore(Path(sys.argv[1]), ("meta", "cubes"), 1 << 24)
for number in range(20):
    value = str(number).encode() * 3000
    store.stage({"cubes": {b"a": value, b"b": value}, "meta": {b"n": b"%d" % number}})()
    store.settle()
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file goes."""
    return tmp_path / "table.mdb"


def opened(path: Path, map_bytes: int = 16 * MIB) -> LmdbStore:
    """The store in `path`."""
    return LmdbStore(path, TABLES, map_bytes)


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """An empty store."""
    made = opened(path)
    yield made
    made.close()


def put(store: Store, key: bytes, value: bytes) -> None:
    """One row, durable and settled."""
    store.stage({"cubes": {key: value}})()
    store.settle()


@contextmanager
def broken(path: Path, replacement: str, is_meta: bool) -> Iterator[None]:
    """LMDB's descriptor for data, or for meta pages, leads to another file meanwhile."""
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        try:
            if os.readlink(f"/proc/self/fd/{fd}") != str(path):
                continue
        except OSError:
            continue  # the descriptor of the listing itself
        if bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DSYNC) == is_meta:
            break
    else:
        pytest.fail("LMDB does not hold the file as this test thinks")
    kept, other = os.dup(fd), os.open(replacement, os.O_WRONLY)
    os.dup2(other, fd)
    os.close(other)
    try:
        yield
    finally:
        os.dup2(kept, fd)
        os.close(kept)


def test_the_file_is_the_owners_alone(store: Store, path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    # A mark while it is open, and no lock file.
    assert sorted(os.listdir(path.parent)) == [path.name, path.name + ".open"]
    store.close()
    assert os.listdir(path.parent) == [path.name]


def test_a_table_that_is_new_is_made(store: Store, path: Path) -> None:
    put(store, b"a", b"1")
    store.close()
    again = LmdbStore(path, (*TABLES, "young"), 16 * MIB)
    assert again.get("cubes", b"a") == b"1"
    assert again.count("young") == 0
    again.close()


def test_use_is_less_than_the_file(store: Store, path: Path) -> None:
    for number in range(50):
        put(store, b"%d" % number, bytes(5000))
    assert 0 < store.used_bytes() <= path.stat().st_size
    assert store.used_bytes() % 4096 == 0


@pytest.mark.parametrize(("point", "last"), [("store.commit.before", 6), ("store.commit.after", 7)])
def test_a_crash_leaves_all_or_nothing(path: Path, point: str, last: int) -> None:
    crashed = python(CHILD, str(path), failpoints=f"{point}=exit@8")
    assert crashed.returncode == failpoints.EXIT_STATUS, crashed.stderr
    acknowledged = int(crashed.stdout.split()[-1])
    assert acknowledged == 6
    store = opened(path)
    assert store.get("meta", b"n") == b"%d" % last
    assert store.get("cubes", b"a") == store.get("cubes", b"b") == b"%d" % last * 3000
    put(store, b"c", b"goes on")
    store.close()


def test_a_crash_while_the_file_is_made_leaves_no_file_in_its_place(path: Path) -> None:
    young = path.with_name(path.name + ".new")
    young.write_bytes(b"half a file")
    store = opened(path)
    put(store, b"a", b"1")
    store.close()
    assert not young.exists()


@pytest.mark.parametrize("point", ["store.stage", "store.commit.before"])
@pytest.mark.parametrize(("action", "expected"), [("enospc", Errno.ENOSPC), ("eio", Errno.EIO)])
def test_injected_failures_have_their_number(
    store: Store, point: str, action: str, expected: Errno
) -> None:
    failpoints.arm(f"{point}={action}")
    with raises(expected):
        store.stage({"cubes": {b"a": b"1"}})()
    failpoints.disarm()
    store.settle()
    assert store.count("cubes") == 0
    put(store, b"a", b"1")
    assert store.count("cubes") == 1


def test_a_full_map_says_enospc(path: Path) -> None:
    store = opened(path, 256 * 1024)
    put(store, b"a", b"1")
    with raises(Errno.ENOSPC):
        store.stage({"cubes": {b"%d" % number: bytes(4000) for number in range(1000)}})
    store.settle()
    assert list(store.scan("cubes", b"")) == [(b"a", b"1")]
    put(store, b"b", b"2")
    store.close()


def test_a_disk_that_is_really_full_says_enospc() -> None:
    filled = in_tiny_file_system(
        """
from pathlib import Path
from libmem.abi.errors import Errno, MemError
from memosd.drivers.store import LmdbStore
store = LmdbStore(Path("/mnt/table.mdb"), ("cubes",), 1 << 24)
store.stage({"cubes": {b"a": b"1"}})()
store.settle()
for size in (400_000, 2_000_000):
    try:
        store.stage({"cubes": {b"b": bytes(size)}})()
    except MemError as error:
        print(size, error.errno.name)
    store.settle()
assert len(store.get("cubes", b"b")) == 400_000
store.stage({"cubes": {b"b": None}})()
store.settle()
store.stage({"cubes": {b"a": b"2"}})()
store.settle()
store.close()
store = LmdbStore(Path("/mnt/table.mdb"), ("cubes",), 1 << 24)
assert list(store.scan("cubes", b"")) == [(b"a", b"2")]
""",
        MIB,
    )
    assert (filled.stdout, filled.returncode) == ("2000000 ENOSPC\n", 0), filled.stderr


@pytest.mark.parametrize(
    ("replacement", "expected"), [("/dev/full", Errno.ENOSPC), ("/dev/null", Errno.EIO)]
)
def test_pages_that_cannot_be_written_leave_nothing(
    store: Store, path: Path, replacement: str, expected: Errno
) -> None:
    put(store, b"a", b"1")
    finish = store.stage({"cubes": {b"a": b"2", b"b": bytes(9000)}})
    # /dev/null takes the pages, but cannot be synced.
    with broken(path, replacement, is_meta=False), raises(expected):
        finish()
    store.settle()
    assert list(store.scan("cubes", b"")) == [(b"a", b"1")]
    put(store, b"c", b"3")
    assert [key for key, _ in store.scan("cubes", b"")] == [b"a", b"c"]


def test_a_meta_page_that_cannot_be_written_stops_writing_not_reading(
    store: Store, path: Path
) -> None:
    put(store, b"a", b"1")
    finish = store.stage({"cubes": {b"a": b"2"}})
    with broken(path, "/dev/full", is_meta=True), raises(Errno.ENOSPC):
        finish()
    for _ in range(2):
        store.settle()
        assert store.get("cubes", b"a") == b"1"
        with raises(Errno.EIO):
            store.stage({"cubes": {b"a": b"3"}})
    store.close()
    again = opened(path)
    assert again.get("cubes", b"a") == b"1"
    put(again, b"a", b"4")
    again.close()


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, b"\0" * 8192, b"x" * 8192, b"SQLite format 3\0" + bytes(9000)]
)
def test_what_is_no_table_file_is_one_clear_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with raises(Errno.ECORRUPT) as caught:
        opened(path)
    assert str(path) in caught.value.message
    assert path.read_bytes() == content  # evidence


def filled_image(path: Path) -> bytes:
    """The file of a store with 3,000 rows, some of them large."""
    store = opened(path)
    generator = random.Random(1)
    for start in range(0, 3000, 1000):
        store.stage(
            {
                "cubes": {
                    b"%05d" % number: generator.randbytes(9000 if number % 100 == 0 else 90)
                    for number in range(start, start + 1000)
                }
            }
        )()
        store.settle()
    store.close()
    return path.read_bytes()


OPEN_AND_READ = """
import sys
from pathlib import Path
from libmem.abi.errors import MemError
from memosd.drivers.store import LmdbStore
for path in sys.argv[1:]:
    try:
        store = LmdbStore(Path(path), ("meta", "cubes"), 1 << 24)
        rows = dict(store.scan("cubes", b""))
        assert all(store.get("cubes", key) == value for key, value in rows.items())
        print("rows", len(rows))
        store.close()
    except MemError as error:
        print(error.errno.name)
"""


def test_a_file_cut_anywhere_is_refused_and_kills_nobody(path: Path) -> None:
    # Read through a mapping, a page past the end would be SIGBUS: hence in a process of its own.
    image = filled_image(path)
    table_bytes = len(image.rstrip(b"\0"))  # what follows is room for the next commits
    lengths = [1, 4096, 8191, 8192, 8193, 12288, *range(20_480, table_bytes - 1, 90_001)]
    cuts = []
    for length in lengths:
        cut = path.with_name(f"cut-{length}.mdb")
        cut.write_bytes(image[:length])
        cuts.append(str(cut))
    read = python(OPEN_AND_READ, *cuts)
    assert read.returncode == 0, (read.returncode, read.stderr)
    assert read.stdout.split() == ["ECORRUPT"] * len(cuts)
    assert [os.path.getsize(cut) for cut in cuts] == lengths  # evidence


def test_a_daemon_that_died_of_its_table_says_so_at_the_next_start(path: Path) -> None:
    image = bytearray(filled_image(path))
    leaf = image.rindex(b"01500") // 4096 * 4096
    image[leaf : leaf + 4096] = bytes(4096)
    path.write_bytes(image)
    first_start = python(OPEN_AND_READ, str(path))
    assert first_start.returncode < 0  # else this test needs another kind of damage
    next_start = python(OPEN_AND_READ, str(path))
    assert (next_start.stdout, next_start.returncode) == ("ECORRUPT\n", 0), next_start.stderr


def test_flipped_bits_kill_nobody_who_is_warned(path: Path) -> None:
    image = filled_image(path)
    generator = random.Random(2)
    damaged = []
    for number in range(30):
        flipped = bytearray(image)
        page = generator.randrange(len(image) // 4096)
        flipped[page * 4096 + generator.randrange(64)] ^= 1 << generator.randrange(8)
        target = path.with_name(f"flip-{number}.mdb")
        target.write_bytes(flipped)
        target.with_name(target.name + ".open").write_text("starting\n")
        damaged.append(str(target))
    read = python(OPEN_AND_READ, *damaged)
    assert read.returncode == 0, (read.returncode, read.stderr)
    outcomes = read.stdout.splitlines()
    assert len(outcomes) == 30
    assert {"ECORRUPT", "rows 3000"} <= set(outcomes)


def test_rows_that_are_missing_are_noticed_after_a_crash(path: Path) -> None:
    image = filled_image(path)
    rows = (3000).to_bytes(8, "little")
    assert rows in image  # the table's own count
    path.write_bytes(image.replace(rows, (3001).to_bytes(8, "little")))
    path.with_name(path.name + ".open").write_text("starting\n")
    with raises(Errno.ECORRUPT) as caught:
        opened(path)
    assert "3000 rows of 3001" in caught.value.message


def test_a_start_after_a_crash_changes_nothing(path: Path) -> None:
    image = filled_image(path)
    path.with_name(path.name + ".open").write_text("starting\n")
    store = opened(path)
    assert store.count("cubes") == 3000
    store.close()
    assert path.read_bytes() == image


def test_a_file_that_lacks_free_pages_at_its_end_is_whole(path: Path) -> None:
    opened(path).close()
    with lmdb.open(
        str(path), map_size=16 * MIB, subdir=False, create=False, max_dbs=2, lock=False
    ) as env:
        table = env.open_db(b"cubes")
        # Pages that one transaction takes and gives back are never written.
        with env.begin(write=True, db=table) as transaction:
            transaction.put(b"a", b"1")
        with env.begin(write=True, db=table) as transaction:
            for number in range(9):
                transaction.put(b"large%d" % number, bytes(20_000))
            for number in range(9):
                transaction.delete(b"large%d" % number)
            transaction.put(b"b", b"2")
        assert path.stat().st_size < (env.info()["last_pgno"] + 1) * 4096
    store = opened(path)
    assert list(store.scan("cubes", b"")) == [(b"a", b"1"), (b"b", b"2")]
    put(store, b"large", bytes(400_000))
    store.close()


def test_a_directory_that_is_missing_is_eio(path: Path) -> None:
    with raises(Errno.EIO) as caught:
        opened(path.parent / "absent" / "table.mdb")
    assert "absent" in caught.value.message


def test_keys_that_lmdb_cannot_hold_are_refused_and_leave_nothing(store: Store) -> None:
    for key in (b"", b"x" * 512):
        with raises(Errno.EIO):
            store.stage({"cubes": {b"a": b"1", key: b"1"}})
        store.settle()
        assert store.count("cubes") == 0


def test_after_close_nothing_works_and_nothing_crashes(store: Store) -> None:
    put(store, b"a", b"1")
    store.close()
    with raises(Errno.EIO):
        store.get("cubes", b"a")
    with raises(Errno.EIO):
        store.stage({"cubes": {b"a": b"1"}})

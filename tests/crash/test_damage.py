"""Flipped bits on disk: never data, one clear error, the rest of the store unharmed."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import libmem
from libmem import CubeType, Durability, Governance
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Finding, Usage
from tests.crash.audit import open_table
from tests.e2e.daemon import Daemon, eventually

MIB = 1 << 20
GOOD = "unharmed, a lapwing"
LARGE = os.urandom(3 * MIB + 100)


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    """The data directory of a stopped daemon, with cubes of all kinds."""
    daemon = Daemon()
    try:
        daemon.start()
        with daemon.connect() as client:
            client.make_namespace("/t")
            client.make_namespace("/u")
            client.write("/u/good", GOOD)
            client.write("/u/large", LARGE, type=CubeType.BLOB)
            client.write("/t/small", "first, a dunlin")
            client.write("/t/small", "second, a dunlin")
            client.write("/t/large", LARGE, type=CubeType.BLOB)
            client.search("dunlin")
            client.read("/t/small")  # leaves a row of heat
        daemon.stop()
        yield daemon.data_dir
    finally:
        daemon.destroy()


@pytest.fixture
def stopped(idle: Daemon, store: Path) -> Iterator[Daemon]:
    """A stopped daemon over a copy of the store; the test damages what it likes below /t."""
    shutil.copytree(store, idle.data_dir)
    yield idle
    if idle.process is not None:
        with idle.connect() as client:
            assert client.read("/u/good").decode() == GOOD
            assert client.read("/u/large") == LARGE
            hits = client.search("lapwing", under="/u")
            assert [hit.name for hit in hits] == ["/u/good"]


def _rows(daemon: Daemon, table: str) -> dict[bytes, bytes]:
    """All rows of a table, as they lie there."""
    with open_table(daemon.data_dir) as env:
        rows = env.open_db(table.encode())
        with env.begin() as transaction:
            return {bytes(key): bytes(value) for key, value in transaction.cursor(rows)}


def _key_of(daemon: Daemon, name: str, table: str) -> bytes:
    """The key of a cube's row in a table, through its name."""
    cube_id = _rows(daemon, "names")[name.encode()][8:]
    return next(key for key in _rows(daemon, table) if key.startswith(cube_id))


def _flip(daemon: Daemon, table: str, key: bytes, at: int = -1) -> None:
    """Flip one bit of a value."""
    with open_table(daemon.data_dir) as env:
        rows = env.open_db(table.encode())
        with env.begin(write=True) as transaction:
            value = bytearray(transaction.get(key, db=rows) or b"")
            value[at] ^= 0x10
            transaction.put(key, bytes(value), db=rows)


def _flip_all(daemon: Daemon, table: str) -> None:
    keys = list(_rows(daemon, table))
    assert keys
    for key in keys:
        _flip(daemon, table, key)


def _page_file(daemon: Daemon, name: str) -> Path:
    cube_id = _key_of(daemon, name, "cubes")
    (path,) = [path for path in daemon.page_files() if path.stem == cube_id.hex()]
    return path


def _errno_of(call: Callable[..., object], *args: object) -> Errno | None:
    try:
        call(*args)
    except MemError as error:
        return error.errno
    return None


def _findings(client: libmem.Client, *, repair: bool = False) -> list[Finding]:
    return [finding for reply in client.fsck(repair=repair) for finding in reply.findings]


# -- page files ------------------------------------------------------------------------------------


def _flip_byte(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "first byte": lambda path: _flip_byte(path, 0),
    "third page": lambda path: _flip_byte(path, 2 * MIB + 7),
    "last byte": lambda path: _flip_byte(path, 3 * MIB + 99),
    "trailer": lambda path: _flip_byte(path, -60),
    "footer": lambda path: _flip_byte(path, -3),
    "cut short": lambda path: os.truncate(path, 2 * MIB),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 4096),
    "gone": os.unlink,
}


def test_a_damaged_page_file_is_never_served(idle: Daemon) -> None:
    names = [f"/t/{damage}" for damage in DAMAGES]
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        for name in [*names, "/t/unharmed"]:
            client.write(name, LARGE, type=CubeType.BLOB)
    idle.stop()
    for name in names:
        DAMAGES[name.removeprefix("/t/")](_page_file(idle, name))
    idle.start()
    with idle.connect() as client:
        assert sorted(item.name for item in _findings(client)) == sorted(names)
        for name in names:
            _check_is_never_served(client, name)
        assert any("quarantined" in notice for notice in client.info().notices)
        idle.restart()
        for name in names:
            assert _errno_of(client.read, name) is Errno.ECORRUPT  # remembered
            client.write(name, "anew" * 10_000, type=CubeType.BLOB)  # a new version is good
            assert client.read(name) == b"anew" * 10_000
            client.unlink(name)
        assert _findings(client) == []
        assert client.info().notices == ()
        assert client.read("/t/unharmed") == LARGE


def _check_is_never_served(client: libmem.Client, name: str) -> None:
    part = c.ReadCube(name, offset_bytes=MIB, length_bytes=10)  # of an undamaged page, mostly
    assert _errno_of(client.call, part) is Errno.ECORRUPT, name
    for call in (client.read, client.map, client.pin):
        with pytest.raises(MemError) as caught:
            call(name)
        assert caught.value.errno is Errno.ECORRUPT, name
        assert caught.value.detail["cube"] == name
    assert client.stat(name).is_quarantined
    assert any(item.action == "quarantine" for item in client.explain(name).decisions)


def test_a_page_file_of_another_cube_is_never_served(stopped: Daemon) -> None:
    """Whole and with good digests, but not what the table means: never the wrong memory."""
    mine, other = _page_file(stopped, "/t/large"), _page_file(stopped, "/u/large")
    mine.write_bytes(other.read_bytes())
    stopped.start()
    with stopped.connect() as client:
        assert _errno_of(client.read, "/t/large") is Errno.ECORRUPT


def test_fsck_can_put_what_is_damaged_aside(stopped: Daemon) -> None:
    _flip_byte(_page_file(stopped, "/t/large"), MIB)
    _flip(stopped, "payloads", _payload_key(stopped, b"second"), 3)
    stopped.start()
    with stopped.connect() as client:
        found = _findings(client, repair=True)
        assert {(item.name, item.action) for item in found} == {
            ("/t/large", "quarantined"),
            ("/t/small", "quarantined"),
        }
        assert all(client.stat(item.name).is_quarantined for item in found)


# -- rows of the table -----------------------------------------------------------------------------


def _payload_key(daemon: Daemon, start: bytes) -> bytes:
    rows = _rows(daemon, "payloads")
    return next(key for key, value in rows.items() if value.startswith(start))


def test_a_damaged_small_payload(stopped: Daemon) -> None:
    _flip(stopped, "payloads", _payload_key(stopped, b"second"), 3)
    stopped.start()
    with stopped.connect() as client:
        assert _errno_of(client.map, "/t/small") is Errno.ECORRUPT
        assert _errno_of(client.read, "/t/small") is Errno.ECORRUPT
        assert client.stat("/t/small").is_quarantined
        assert client.read("/t/small@v1") == b"first, a dunlin"
        assert [item.name for item in _findings(client)] == ["/t/small"]
        client.write("/t/small", "third, a dunlin")
        assert client.read("/t/small") == b"third, a dunlin"


def test_a_damaged_cube_row(stopped: Daemon) -> None:
    key = _key_of(stopped, "/t/small", "cubes")
    _flip(stopped, "cubes", key, 20)
    stopped.start()
    with stopped.connect() as client:
        for call in (client.stat, client.read, client.map, client.pin):
            assert _errno_of(call, "/t/small") is Errno.ECORRUPT
        assert _errno_of(client.write, "/t/small", "x") is Errno.ECORRUPT
        assert [stat.name for stat in client.list("/t")] == ["/t/large"]
        assert client.search("dunlin") == ()
        (finding,) = _findings(client)
        assert (finding.id, finding.name) == (key, "/t/small")


@pytest.mark.parametrize("name", ["/t/small", "/t/large"])
def test_the_administrator_removes_what_is_left_of_a_cube(stopped: Daemon, name: str) -> None:
    key = _key_of(stopped, name, "cubes")
    _flip(stopped, "cubes", key)
    stopped.start()
    with stopped.connect() as client:
        assert client.unlink(name).freed_bytes > 0
        stopped.kill()
        stopped.start()
        assert _errno_of(client.stat, name) is Errno.ENOENT
        assert _findings(client) == []
        for stat in list(client.list("/t")):
            client.unlink(stat.name)
        assert client.stat_namespace("/t").usage == Usage()
        client.remove_namespace("/t")
    assert key not in _rows(stopped, "payloads")


def test_a_damaged_name_row(stopped: Daemon) -> None:
    _flip(stopped, "names", b"/t/small")
    stopped.start()
    with stopped.connect() as client:
        assert _errno_of(client.read, "/t/small") is Errno.ECORRUPT
        assert [stat.name for stat in client.list("/t")] == ["/t/large"]
        assert len(_findings(client)) == 1


def test_a_name_row_of_another_cube(stopped: Daemon) -> None:
    """A row that strayed to another key is as bad as a flipped bit."""
    with open_table(stopped.data_dir) as env:
        names = env.open_db(b"names")
        with env.begin(write=True) as transaction:
            other = transaction.get(b"/u/good", db=names)
            transaction.put(b"/t/small", bytes(other or b""), db=names)
    stopped.start()
    with stopped.connect() as client:
        assert _errno_of(client.read, "/t/small") is Errno.ECORRUPT


def test_a_damaged_older_version(stopped: Daemon) -> None:
    _flip(stopped, "history", _key_of(stopped, "/t/small", "history"))
    stopped.start()
    with stopped.connect() as client:
        assert _errno_of(client.read, "/t/small@v1") is Errno.ECORRUPT
        assert _errno_of(client.history, "/t/small") is Errno.ECORRUPT
        assert client.read("/t/small") == b"second, a dunlin"
        client.write("/t/small", "third, a dunlin")
        assert len(_findings(client)) == 1


def test_damaged_events_are_passed_over(stopped: Daemon) -> None:
    _flip_all(stopped, "log")
    stopped.start()
    with stopped.connect() as client:
        assert list(client.watch("/t", since_seq=0, timeout_s=0)) == []
        client.write("/t/new", "seen, a curlew")
        (event,) = client.watch("/t", since_seq=0, timeout_s=0)
        assert event.name == "/t/new"
        assert [hit.name for hit in client.search("curlew")] == ["/t/new"]


def test_damaged_heat_begins_anew(stopped: Daemon) -> None:
    _flip_all(stopped, "heat")
    stopped.start()
    with stopped.connect() as client:
        assert client.stat("/t/small").behaviour.reads == 0
        assert client.explain("/t/small").decisions == ()
        client.read("/t/small")
        assert client.stat("/t/small").behaviour.reads == 1


def test_expiry_goes_on_past_damaged_cubes(stopped: Daemon) -> None:
    """A cube whose rows are damaged must not stop the sweep, nor the daemon."""
    stopped.config = "[behaviour]\nexpiry_sweep_s = 0.05\n"
    stopped.start()
    with stopped.connect() as client:
        soon = Governance(expires_ns=1)
        for name in ("/t/row", "/t/history", "/t/good"):
            client.write(name, "1")
            client.write(name, "2", governance=Governance(expires_ns=1 << 62))
    stopped.stop()
    _flip(stopped, "cubes", _key_of(stopped, "/t/row", "cubes"))
    _flip(stopped, "history", _key_of(stopped, "/t/history", "history"))
    stopped.start()
    with stopped.connect() as client:
        cubes = client.stat_namespace("/t").usage.cubes
        for name in ("/t/history", "/t/good"):
            client.set_header(name, governance=soon)
        eventually(lambda: client.stat_namespace("/t").usage.cubes == cubes - 1, "one is swept")
        assert _errno_of(client.stat, "/t/good") is Errno.ENOENT
        assert _errno_of(client.stat, "/t/row") is Errno.ECORRUPT


def test_a_boot_that_finds_lost_cubes_damaged(idle: Daemon) -> None:
    """Cache payloads are gone after a crash; what tells of them may be damaged as well."""
    idle.config = "[behaviour]\nwriteback_delay_s = 86400\n"
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        for name in ("/t/row", "/t/mark", "/t/good"):
            client.write(name, LARGE[:MIB], type=CubeType.BLOB, durability=Durability.CACHE)
    idle.kill()
    _flip(idle, "cubes", _key_of(idle, "/t/row", "cubes"))
    _flip(idle, "volatile", _key_of(idle, "/t/mark", "volatile"))
    idle.start()
    with idle.connect() as client:
        assert _errno_of(client.read, "/t/row") is Errno.ECORRUPT
        assert _errno_of(client.read, "/t/mark") in (Errno.ENOENT, Errno.ECORRUPT)
        assert _errno_of(client.read, "/t/good") is Errno.ENOENT


def test_a_damaged_namespace(stopped: Daemon) -> None:
    """Its cubes are out of reach, also to whoever would make another one of that name."""
    rows = _rows(stopped, "namespaces")
    _flip(stopped, "namespaces", next(key for key, row in rows.items() if b"/t" in row))
    stopped.start()
    with stopped.connect() as client:
        assert _errno_of(client.read, "/t/small") is Errno.ENOENT
        assert _errno_of(client.unlink, "/t/small") is Errno.ENOENT
        assert _errno_of(client.write, "/t/small", "x") is Errno.ENOENT
        assert _errno_of(client.make_namespace, "/t") is Errno.EEXIST
        assert client.search("dunlin") == ()
        assert any("namespaces" in notice for notice in client.info().notices)
        client.make_namespace("/v")
        client.write("/v/x", "as ever")


@pytest.mark.parametrize("table", ["quarantine", "expiry", "volatile", "pages", "heat"])
def test_rows_that_make_no_sense(table: str, stopped: Daemon) -> None:
    """Bookkeeping of payloads and cubes that never were."""
    with open_table(stopped.data_dir) as env:
        rows = env.open_db(table.encode())
        with env.begin(write=True) as transaction:
            for key in (b"\0" * 8, b"\0" * 16, b"\0" * 24, b"\xff" * 24, b"?"):
                transaction.put(key, b"\0" * 24, db=rows)
    stopped.start()
    with stopped.connect() as client:
        client.write("/t/new", LARGE, type=CubeType.BLOB)
        assert client.read("/t/new") == LARGE

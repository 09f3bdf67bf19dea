"""Start and end: what the service manager hears, what stops a boot, and what a stop leaves."""

import fcntl
import os
import signal
import subprocess
import threading
from importlib.metadata import version
from pathlib import Path

import lmdb
import pytest

from libmem import CubeType, Durability
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.paths import CONTROL_SOCKET, FD_SOCKET
from libmem.abi.syscalls import BY_NAME
from libmem.abi.wire import decode_reply, decode_result
from tests.e2e.daemon import PATIENCE_S, ROOT, Daemon, eventually
from tests.e2e.raw import RawPeer

MIB = 1 << 20


def _refusal(daemon: Daemon, *errnos: Errno) -> str:
    """The one line with which it refuses to start, with one of the errnos as its status."""
    status, words = daemon.refuses_to_start()
    assert status in errnos, words
    lines = words.splitlines()
    assert len(lines) == 1, words
    assert lines[0].startswith("memosd: ")
    return lines[0]


def test_it_tells_its_version(idle: Daemon) -> None:
    told = subprocess.run(
        [*idle.command(), "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert told.stdout == f"memosd {version('memosd')}\n"


# -- the service manager ---------------------------------------------------------------------------


def test_the_service_manager_is_kept_informed(idle: Daemon) -> None:
    idle.environment = {"WATCHDOG_USEC": "200000"}
    idle.start()
    assert f"MAINPID={idle.pid}" in idle.notifications
    with idle.connect() as client:
        client.make_namespace("/t")
        client.write("/t/x", "one")
        idle.await_notification("STATUS=serving 1 cubes to 1 sessions")
    assert idle.notifications.count("WATCHDOG=1") >= 1
    os.kill(idle.pid, signal.SIGTERM)
    idle.await_notification("STOPPING=1")
    assert idle.wait_for_end() == 0


def test_only_a_death_of_its_table_makes_the_next_start_long(daemon: Daemon) -> None:
    daemon.restart()
    assert not any(line.startswith("EXTEND_TIMEOUT_USEC") for line in daemon.notifications)
    os.kill(daemon.pid, signal.SIGBUS)
    assert daemon.wait_for_end() == -signal.SIGBUS
    daemon.start()
    assert any(line.startswith("EXTEND_TIMEOUT_USEC") for line in daemon.notifications)
    assert any("Fatal Python error: Bus error" in line for line in daemon.notifications)
    daemon.restart()
    assert not any(line.startswith("EXTEND_TIMEOUT_USEC") for line in daemon.notifications)


def test_a_watchdog_of_another_process_is_not_ours(idle: Daemon) -> None:
    idle.environment = {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}
    idle.start()
    with idle.connect() as client:
        for _ in range(1000):
            client.info()
    idle.stop()
    assert "WATCHDOG=1" not in idle.notifications


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_well_and_the_sockets_are_gone(
    number: signal.Signals, daemon: Daemon
) -> None:
    os.kill(daemon.pid, number)
    assert daemon.wait_for_end() == 0
    assert not (daemon.runtime_dir / CONTROL_SOCKET).exists()
    assert not (daemon.runtime_dir / FD_SOCKET).exists()
    with pytest.raises(MemError) as refused:
        daemon.connect(timeout_s=1)
    assert refused.value.errno is Errno.ECONNREFUSED


def test_shutdown_ends_it_well(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.write("/t/x", "kept")
        client.shutdown()
    assert daemon.wait_for_end() == 0
    daemon.start()
    with daemon.connect() as client:
        assert client.read("/t/x") == b"kept"


# -- ending under load -----------------------------------------------------------------------------


class Writer(threading.Thread):
    """Writes small and large cubes one after the other until it is refused."""

    def __init__(self, daemon: Daemon, number: int) -> None:
        super().__init__()
        self.number = number
        self.acknowledged: dict[str, bytes] = {}
        self.end: MemError | None = None
        self._client = daemon.connect(timeout_s=3)

    def run(self) -> None:
        with self._client as client:
            for turn in range(1_000_000):
                payload = f"{self.number} {turn} ".encode() * (1 if turn % 3 else 5000)
                name = f"/t/{self.number}-{turn}"
                try:
                    client.write(name, payload)
                except MemError as error:
                    self.end = error
                    return
                self.acknowledged[name] = payload


def test_sigterm_under_load_loses_nothing_acknowledged(daemon: Daemon) -> None:
    writers = [Writer(daemon, number) for number in range(4)]
    for writer in writers:
        writer.start()
    eventually(lambda: all(len(w.acknowledged) > 20 for w in writers), "all write")
    daemon.stop()
    for writer in writers:
        writer.join(PATIENCE_S)
        assert writer.end is not None
        assert writer.end.errno in (Errno.ECONNRESET, Errno.ECONNREFUSED, Errno.ESHUTDOWN)
    daemon.start()
    with daemon.connect() as client:
        for writer in writers:
            for name, payload in writer.acknowledged.items():
                assert client.read(name) == payload


def test_cache_cubes_are_written_back_at_the_end(idle: Daemon) -> None:
    idle.config = "[behaviour]\nwriteback_delay_s = 86400\n"
    idle.start()
    with idle.connect() as client:
        client.make_namespace("/t")
        for number in range(20):
            client.write(
                f"/t/{number}",
                bytes([number]) * MIB,
                type=CubeType.BLOB,
                durability=Durability.CACHE,
            )
        assert idle.page_files() == []
        idle.stop()
        assert len(idle.page_files()) == 20
        idle.start()
        for number in range(20):
            assert client.read(f"/t/{number}") == bytes([number]) * MIB


def test_watchers_are_let_go_at_the_end(daemon: Daemon) -> None:
    """A long poll is answered, and does not keep the daemon from stopping."""
    with RawPeer(daemon.runtime_dir) as peer, daemon.connect() as client:
        peer.bind()
        calls = client.info().calls
        seq = peer.post(c.Watch("/t", timeout_ms=60_000))
        eventually(lambda: client.info().calls > calls + 1, "it waits")
        daemon.stop()
        reply = decode_reply(peer.dealer.recv())
        assert (reply.seq, reply.errno) == (seq, 0)
        assert decode_result(BY_NAME["watch"], 0, reply.body).events == ()


# -- what stops a boot -----------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_data_is_refused(daemon: Daemon) -> None:
    second = Daemon()
    second.data_dir = daemon.data_dir
    words = _refusal(second, Errno.EBUSY)
    assert str(daemon.pid) in words
    assert str(daemon.data_dir) in words
    second.destroy()
    with daemon.connect() as client:
        client.write("/t/x", "unharmed")


def test_a_second_daemon_on_the_same_sockets_is_refused(daemon: Daemon) -> None:
    """Binding would take the sockets away from the first one."""
    second = Daemon()
    second.runtime_dir = daemon.runtime_dir
    words = _refusal(second, Errno.EBUSY)
    assert str(daemon.runtime_dir) in words
    second.destroy()
    with daemon.connect() as client:
        client.write("/t/x", "unharmed")


def test_sockets_left_by_a_killed_daemon_are_no_obstacle(daemon: Daemon) -> None:
    daemon.kill()
    assert (daemon.runtime_dir / CONTROL_SOCKET).exists()
    daemon.start()


def test_a_lock_file_without_a_daemon_is_no_obstacle(daemon: Daemon) -> None:
    daemon.stop()
    assert (daemon.data_dir / "lock").read_text().strip().isdigit()
    with (daemon.data_dir / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another memosd" in _refusal(daemon, Errno.EBUSY)
    daemon.start()


@pytest.mark.parametrize("version", [0, 2, 1 << 31])
def test_data_of_another_format_is_refused_untouched(version: int, daemon: Daemon) -> None:
    daemon.stop()
    path = daemon.data_dir / "table.mdb"
    with lmdb.open(str(path), subdir=False, lock=False, max_dbs=16, map_size=1 << 30) as env:
        meta = env.open_db(b"meta")
        with env.begin(write=True) as transaction:
            transaction.put(b"format", version.to_bytes(4, "big"), db=meta)
    before = path.read_bytes()
    words = _refusal(daemon, Errno.EPROTONOSUPPORT)
    assert f"format {version}" in words
    assert path.read_bytes() == before


def test_data_that_is_no_table_is_refused(daemon: Daemon) -> None:
    daemon.stop()
    (daemon.data_dir / "table.mdb").write_bytes(b"something else entirely " * 1000)
    _refusal(daemon, Errno.ECORRUPT)
    (daemon.data_dir / "table.mdb").write_bytes(b"")
    _refusal(daemon, Errno.ECORRUPT)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_directories_that_cannot_be_are_one_clear_line(place: str, idle: Daemon) -> None:
    (idle.folder / "file").write_text("a file, no directory")
    good, idle.data_dir = idle.data_dir, idle.folder / place
    assert "data directory" in _refusal(idle, Errno.EIO)
    idle.data_dir, idle.runtime_dir = good, idle.folder / place
    assert "runtime directory" in _refusal(idle, Errno.EIO)


def test_names_of_directories_that_are_too_long_are_one_clear_line(idle: Daemon) -> None:
    good, idle.data_dir = idle.data_dir, idle.folder / ("x" * 300)
    assert "data directory" in _refusal(idle, Errno.EIO)
    idle.data_dir, idle.runtime_dir = good, idle.folder / ("x" * 100)
    assert "runtime_dir" in _refusal(idle, Errno.EINVAL)  # no socket could have such a name


def test_directories_that_may_not_be_used_are_one_clear_line(idle: Daemon) -> None:
    """As root one is refused nothing, save by a file system that nobody can write."""
    for place in ("/proc/memosd", "/sys/memosd"):
        idle.data_dir = Path(place)
        assert place in _refusal(idle, Errno.EACCES, Errno.EIO)


def test_a_runtime_directory_that_others_can_change_is_refused(idle: Daemon) -> None:
    idle.runtime_dir.mkdir()
    idle.runtime_dir.chmod(0o777)
    assert "changed by other users" in _refusal(idle, Errno.EPERM)

"""Opening a link: nobody there, somebody else there, a daemon that does not want us."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

import libmem
from libmem import handshake
from libmem.abi import paths
from libmem.abi.errors import Errno, MemError
from libmem.link import Link
from tests.libmem.fake_daemon import FakeDaemon, Incoming, die, refuse, silent


def refusal(runtime_dir: Path, timeout_s: float = 10.0) -> MemError:
    with pytest.raises(MemError) as raised:
        libmem.connect(runtime_dir, timeout_s=timeout_s)
    return raised.value


def test_no_directory_and_no_daemon_is_refused(runtime_dir: Path) -> None:
    error = refusal(runtime_dir / "none")
    assert error.errno is Errno.ECONNREFUSED
    assert error.detail == {"runtime_dir": str(runtime_dir / "none")}
    assert refusal(runtime_dir).errno is Errno.ECONNREFUSED


def test_a_dead_daemons_sockets_are_refused(daemon: FakeDaemon) -> None:
    daemon.kill()
    assert (daemon.runtime_dir / paths.FD_SOCKET).exists()
    assert refusal(daemon.runtime_dir).errno is Errno.ECONNREFUSED


def test_a_path_too_long_for_a_socket_is_named(runtime_dir: Path) -> None:
    assert refusal(runtime_dir / ("x" * 120)).errno is Errno.ENAMETOOLONG


def test_the_default_directory_is_found(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMOSD_RUNTIME_DIR", str(daemon.runtime_dir))
    with libmem.connect() as client:
        assert client.session.server == "fake"


def test_a_relative_directory_survives_a_chdir(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(daemon.runtime_dir.parent)
    with libmem.connect(daemon.runtime_dir.name) as client:
        monkeypatch.chdir("/")
        daemon.restart()
        assert client.info().server == "fake"


def test_a_daemon_that_dies_while_greeting_is_refused(daemon: FakeDaemon) -> None:
    daemon.script("hello", die)
    assert refusal(daemon.runtime_dir).errno is Errno.ECONNREFUSED


def test_a_daemon_that_does_not_greet_times_out(daemon: FakeDaemon) -> None:
    daemon.script("hello", silent)
    assert refusal(daemon.runtime_dir, 0.02).errno is Errno.ETIMEDOUT
    assert len(daemon.live_sessions()) == 0


def test_a_token_that_is_not_taken_is_refused(daemon: FakeDaemon) -> None:
    def forget(daemon: FakeDaemon, incoming: Incoming) -> None:
        daemon.greet(incoming)
        daemon.sessions.clear()

    daemon.script("hello", forget)
    assert refusal(daemon.runtime_dir).errno is Errno.ECONNREFUSED


def test_another_abi_version_is_reported(daemon: FakeDaemon) -> None:
    daemon.script("hello", refuse(MemError(Errno.EPROTONOSUPPORT, "ABI 1, not 2")))
    assert refusal(daemon.runtime_dir).errno is Errno.EPROTONOSUPPORT


def test_a_failed_greeting_leaves_nothing_open(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Link] = []

    def recorded(dealer: zmq.Socket[bytes], road: socket.socket) -> Link:
        opened.append(Link(dealer, road))
        return opened[-1]

    monkeypatch.setattr(handshake, "Link", recorded)
    daemon.script("hello", refuse(MemError(Errno.EMFILE, "full")), die)
    assert refusal(daemon.runtime_dir).errno is Errno.EMFILE
    assert refusal(daemon.runtime_dir).errno is Errno.ECONNREFUSED
    assert [(link.road.fileno(), link.dealer.closed) for link in opened] == [(-1, True)] * 2


def test_the_program_is_named(daemon: FakeDaemon) -> None:
    with libmem.connect(daemon.runtime_dir, name="reader"):
        assert daemon.calls[0].args.client == "reader"


def test_nobody_but_root_or_the_owner_may_answer(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "_trusted_uids", lambda _: {os.getuid() + 1})
    assert refusal(daemon.runtime_dir).errno is Errno.EPERM
    assert daemon.count("hello") == 0


def test_who_may_answer_where(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    # The user's own directory may not exist, or be anybody's who was there first.
    assert handshake._trusted_uids(Path("/tmp/memosd-4711")) == {0, 4711}
    assert handshake._trusted_uids(runtime_dir) == {0, runtime_dir.stat().st_uid}


_IMPOSTOR = """
import os, socket, sys
os.setuid(65534)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make an impostor")
def test_an_impostor_is_not_greeted(runtime_dir: Path) -> None:
    runtime_dir.chmod(0o777)
    command = [sys.executable, "-c", _IMPOSTOR, str(runtime_dir / paths.FD_SOCKET)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as impostor:
        assert impostor.stdout is not None
        assert impostor.stdout.readline() == b"listening\n"
        error = refusal(runtime_dir)
        assert (error.errno, error.detail) == (Errno.EPERM, {"uid": 65534})
        impostor.communicate()


def test_a_full_backlog_times_out(runtime_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(runtime_dir / paths.FD_SOCKET))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
            first.connect(str(runtime_dir / paths.FD_SOCKET))
            assert refusal(runtime_dir, 0.02).errno is Errno.ETIMEDOUT

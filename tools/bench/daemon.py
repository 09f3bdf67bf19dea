"""A private memosd for one benchmark: its own directories, started, restarted, removed.

Owns the process and the directories. Invariant: when the `private_daemon` block ends, no process
and no file is left. Readiness is what the daemon itself says (sd_notify), so that the time to
READY is exact and nothing polls.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import libmem
from libmem.abi.errors import Errno, MemError

__all__ = ["Daemon", "private_daemon"]

_READY_S: Final = 120.0
"""A store this slow to open has missed every bar long before."""

_STOP_S: Final = 120.0
_SETTLE_S: Final = 600.0


class Daemon:
    """One store and the daemon that serves it, which may be stopped and started again."""

    def __init__(self, data_dir: Path, meeting_dir: Path, embedder: str, config: str = "") -> None:
        """`meeting_dir` is short enough for socket names; both exist and are empty."""
        self.embedder = embedder
        """What the next `start` gives it: `none`, `auto`, or a folder."""
        self.config = config
        """TOML for the next `start`; empty: what `--user` means."""
        self.environment: dict[str, str] = {}
        """What the next `start` finds in its environment besides ours."""
        self.data_dir = data_dir
        self.runtime_dir = meeting_dir / "run"
        self._notify_path = meeting_dir / "notify"
        self._log_path = meeting_dir / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Errors: ESHUTDOWN when it does not run."""
        return self._running().pid

    def start(self) -> float:
        """Start it and return the seconds from spawn to READY.

        Errors: EIO (it ended first; the message has its last words), ETIMEDOUT.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            self._notify_path.unlink(missing_ok=True)
            notify.bind(str(self._notify_path))
            before = time.perf_counter()
            with self._log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "memosd", *self._options()],
                    env={**os.environ, **self.environment, "NOTIFY_SOCKET": str(self._notify_path)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self._wait_ready(self._process, notify)
            return time.perf_counter() - before

    def stop(self) -> None:
        """Ask it to end, as a supervisor does. Errors: EIO (a bad end), ETIMEDOUT."""
        process = self._running()
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise MemError(Errno.ETIMEDOUT, f"memosd did not end in {_STOP_S:g} s") from None
        self._process = None
        if status != 0:
            raise self._last_words(status)

    def kill(self) -> None:
        """End it as a power cut would; does nothing when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def connect(self, timeout_s: float = 10.0) -> libmem.Client:
        return libmem.connect(self.runtime_dir, timeout_s=timeout_s)

    def settle(self) -> float:
        """Wait until the index knows all that was written; the seconds that took.

        A write does not wait for the index and a search does, so the index is the part of
        writing that a rate alone would hide. Nothing is left to do in the background afterwards.
        """
        with self.connect(timeout_s=_SETTLE_S) as client:
            before = time.perf_counter()
            client.search("settled")
            return time.perf_counter() - before

    def _options(self) -> list[str]:
        directories = ["--data-dir", str(self.data_dir), "--runtime-dir", str(self.runtime_dir)]
        source = ["--user"]
        if self.config:
            file = self._log_path.with_name("memosd.toml")
            file.write_text(self.config, encoding="utf-8")
            source = ["--config", str(file)]
        return [*source, *directories, "--embedder", self.embedder]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise MemError(Errno.ESHUTDOWN, "the benchmark's daemon does not run")
        return self._process

    def _wait_ready(self, process: subprocess.Popen[bytes], notify: socket.socket) -> None:
        end = os.pidfd_open(process.pid)
        both: list[socket.socket | int] = [notify, end]
        deadline = time.monotonic() + _READY_S
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                readable, _, _ = select.select(both, [], [], left_s)
                if notify in readable:
                    if b"READY=1" in notify.recv(4096).split(b"\n"):
                        return
                elif readable:
                    raise self._last_words(process.wait())
        finally:
            os.close(end)
        self.kill()
        raise MemError(Errno.ETIMEDOUT, f"memosd was not ready in {_READY_S:g} s")

    def _last_words(self, status: int) -> MemError:
        self._process = None
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        words = lines[-1] if lines else "it said nothing"
        return MemError(Errno.EIO, f"memosd ended with status {status}: {words}")


@contextmanager
def private_daemon(
    directory: Path, embedder: str = "none", *, config: str = ""
) -> Iterator[Daemon]:
    """A daemon, not started yet, on a new store below `directory`; both vanish with the block.

    Without an embedder unless it is asked for: what is not about recall pays for none.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="memos-bench-", dir=directory))
    # Sockets have names of at most 107 bytes, and `directory` may be deep.
    meeting_dir = Path(tempfile.mkdtemp(prefix="memos-bench-"))
    daemon = Daemon(data_dir, meeting_dir, embedder, config)
    try:
        yield daemon
    finally:
        daemon.kill()
        shutil.rmtree(data_dir, ignore_errors=True)
        shutil.rmtree(meeting_dir, ignore_errors=True)

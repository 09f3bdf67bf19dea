"""A real daemon in directories of its own, for tests to start, stop, kill and look at.

Owns the process and its folder. Readiness is what the daemon itself says (sd_notify), so nothing
sleeps; what cannot be waited for otherwise is asked for again and again, to a deadline
(`eventually`). Invariants that `finish` holds every test to: no session, pin, mapping or
descriptor outlives its client, the daemon ends in order, and its log tells of no surprise.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libmem
from libmem.abi.calls import InfoReply
from libmem.abi.state import TierStat

__all__ = ["PATIENCE_S", "ROOT", "Daemon", "eventually", "running", "tier"]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
"""How long a test waits for what must happen; only a failing test takes that long."""

_ALARMING = ("Traceback", "unexpected error", "background task failed", "could not stop in order")


def eventually(is_so: Callable[[], bool], what: str) -> None:
    """Ask again and again until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()  # lest the asking takes the processor from the daemon
    while not is_so():
        assert time.monotonic() < deadline, f"it never happened: {what}"
        pause.wait(0.002)


def tier(info: InfoReply, name: str) -> TierStat:
    """One tier's account."""
    return next(stat for stat in info.tiers if stat.name == name)


class Daemon:
    """One store and the daemon that serves it, over any number of restarts."""

    def __init__(self) -> None:
        # Not pytest's folder: a socket's whole path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="memosd-test-"))
        self.data_dir = self.folder / "data"
        self.runtime_dir = self.folder / "run"
        self.config: str | None = None
        """TOML to run with instead of --user; the directories are given to it in any case."""
        self.environment: dict[str, str] = {}
        self.embedder = ""
        """A folder; empty: what the configuration says, which finds none."""
        self.module = "memosd"
        """What is run."""
        self.process: subprocess.Popen[bytes] | None = None
        self.notifications: list[str] = []
        """Lines that the daemon sent to its service manager since it was started."""
        self._ear: socket.socket | None = None
        self._at_rest: Counter[str] = Counter()

    # -- its life ------------------------------------------------------------------------------

    def start(self, failpoints: str = "") -> None:
        """Start it and wait for READY."""
        self.spawn(failpoints)
        self.await_notification("READY=1")
        self._remember_rest()

    def try_to_start(self) -> tuple[int, str]:
        """Start it; where it ends before READY, its status and its words, else 0 and none."""
        said = len(self.log())
        self.spawn()
        try:
            self.await_notification("READY=1")
        except AssertionError:
            return self.wait_for_end(), self.log()[said:]
        self._remember_rest()
        return 0, ""

    def spawn(self, failpoints: str = "") -> None:
        """Start it without waiting."""
        assert self.process is None, "it runs already"
        path = self.folder / "notify"
        path.unlink(missing_ok=True)
        self._close_ear()
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(path))
        self.notifications = []
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NOTIFY_SOCKET": str(path),
            "MEMOSD_FAILPOINTS": failpoints,
            # No model is there, and so no worker, unless a test asks for one.
            "MEMOSD_MODELS_DIR": str(self.folder / "models"),
            **self.environment,
        }
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def command(self) -> list[str]:
        """How it is started."""
        source = ["--user"]
        if self.config is not None:
            file = self.folder / "memosd.toml"
            file.write_text(self.config)
            source = ["--config", str(file)]
        directories = ["--data-dir", str(self.data_dir), "--runtime-dir", str(self.runtime_dir)]
        models = ["--embedder", self.embedder] if self.embedder else []
        return [sys.executable, "-m", self.module, *source, *directories, *models]

    def refuses_to_start(self) -> tuple[int, str]:
        """Start another one in the same way; the status and the words with which it ends."""
        done = subprocess.run(
            self.command(),
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stderr + done.stdout

    @property
    def pid(self) -> int:
        assert self.process is not None, "it does not run"
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End it as a service manager does; it must end well."""
        os.kill(self.pid, signal.SIGTERM)
        status = self.wait_for_end()
        assert status == 0, f"status {status}: {self.log()}"

    def kill(self) -> None:
        """End it as the power's failing does."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait_for_end()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def wait_for_end(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self.process is not None
        status = self.process.wait(PATIENCE_S)
        self.process = None
        return status

    # -- looking at it -------------------------------------------------------------------------

    def connect(self, timeout_s: float = PATIENCE_S) -> libmem.Client:
        return libmem.connect(self.runtime_dir, timeout_s=timeout_s)

    def await_notification(self, line: str) -> None:
        """Wait until it has told the service manager this line, or one that begins so."""
        assert self._ear is not None
        deadline = time.monotonic() + PATIENCE_S
        while not any(said.startswith(line) for said in self.notifications):
            end = os.pidfd_open(self.pid)
            try:
                either: list[socket.socket | int] = [self._ear, end]
                left_s = max(0.0, deadline - time.monotonic())
                ready, _, _ = select.select(either, [], [], left_s)
            finally:
                os.close(end)
            assert ready, f"{line} never came: {self.log()}"
            assert self._ear in ready, f"it ended before {line}: {self.log()}"
            self.notifications += self._ear.recv(4096).decode().split("\n")

    def log(self) -> str:
        """Everything it wrote, in all its lives."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def descriptors(self) -> Counter[str]:
        """Open descriptors by kind: socket, anon_inode, memfd (frames of cubes), page (files).

        The store's and the index's own files come and go and are left out.
        """
        kinds: Counter[str] = Counter()
        for number in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                target = os.readlink(f"/proc/{self.pid}/fd/{number}")
            except FileNotFoundError:
                continue  # closed meanwhile
            if target.startswith("/memfd:memosd"):
                kinds["memfd"] += 1
            elif target.endswith(".page"):
                kinds["page"] += 1
            elif not target.startswith("/"):
                kinds[target.partition(":")[0]] += 1
        return kinds

    def page_files(self) -> list[Path]:
        """All files below pages/, half-written ones included."""
        return [path for path in self.data_dir.glob("pages/*/*") if path.is_file()]

    def _remember_rest(self) -> None:
        with self.connect() as client:
            client.info()
            self._at_rest = self.descriptors()

    # -- the end of a test ---------------------------------------------------------------------

    def finish(self) -> None:
        """Check that nothing leaked and that it ends well; nothing if it does not run."""
        try:
            if self.process is not None:
                assert self.is_running, f"it died: {self.log()}"
                self.await_rest()
                self.stop()
            self._check_log()
        finally:
            self.destroy()

    def await_rest(self) -> None:
        """Wait until nothing of former clients is left in the daemon."""
        with self.connect() as client:
            seen: list[object] = []

            def is_at_rest() -> bool:
                info = client.info()
                ram = tier(info, "ram")
                found = self.descriptors()
                frames = found.pop("memfd", 0)
                seen[:] = [info, found, frames]
                idle = sum(worker.state == "idle" for worker in info.workers)
                rest = self._at_rest + Counter({"socket": 2 * idle, "anon_inode": idle})
                is_free = info.sessions == 1 + idle and not ram.pinned_bytes
                # A device of the host has its frames in the same kind of memory.
                cubes = sum(each.cubes for each in info.tiers if each.name != "disk")
                return is_free and frames == cubes and found <= rest

            try:
                eventually(is_at_rest, "the daemon is at rest")
            except AssertionError as error:
                raise AssertionError(f"{error}: {seen}, at rest: {self._at_rest}") from None

    def destroy(self) -> None:
        """Leave no process and no file."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._close_ear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_log(self) -> None:
        assert not any(word in self.log() for word in _ALARMING), self.log()

    def _close_ear(self) -> None:
        if self._ear is not None:
            self._ear.close()
            self._ear = None

    @property
    def _log_path(self) -> Path:
        return self.folder / "log"


@contextmanager
def running(daemon: Daemon) -> Iterator[None]:
    """Start it; end it in order, and hold it to what `finish` holds every daemon to."""
    try:
        daemon.start()
    except BaseException:
        daemon.destroy()
        raise
    yield
    daemon.finish()

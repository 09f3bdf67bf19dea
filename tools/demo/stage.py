"""Where the demo plays: a private daemon in a temporary directory, child processes, the screen.

Owns the directory and every process it starts; leaving the stage ends them all and removes it.
Invariant: nothing is printed as true that `verify` was not given; the first that is false ends
the demo.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import libmem
from libmem.abi.errors import Errno, MemError
from libmem.abi.paths import CONTROL_SOCKET
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2

__all__ = ["Actor", "Stage"]

_WIDTH_WITHOUT_TERMINAL: Final = 110
_INDENT: Final = 15
_READY_S: Final = 10.0
_PATIENCE_S: Final = 600.0
_ACTOR_S: Final = 25.0
_POLL_S: Final = 0.005
_SOCKET_PATH_BYTES: Final = 107
"""What a UNIX socket's address holds (unix(7))."""


class Actor:
    """One child process in a role; what it says arrives line by line."""

    def __init__(
        self, module: str, role: str, arguments: tuple[str, ...], environment: dict[str, str]
    ) -> None:
        self.role = role
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"memosd.tools.demo.{module}", role, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends. Errors: EIO when it fails."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for line in self._process.stdout:
            yield json.loads(line)
        complaint = self._process.stderr.read().strip()
        if self._process.wait(_ACTOR_S):
            raise MemError(Errno.EIO, f"{self.role} (pid {self.pid}) failed: {complaint}")

    def result(self) -> dict[str, Any]:
        """The last thing it says."""
        said = list(self.lines())
        if not said:
            raise MemError(Errno.EIO, f"{self.role} (pid {self.pid}) said nothing")
        return said[-1]

    def kill(self) -> None:
        """End it, however far it came."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


class Stage:
    """The demo's world. A context manager."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)
        if not self.console.is_terminal:
            self.console = Console(
                highlight=False, markup=False, emoji=False, width=_WIDTH_WITHOUT_TERMINAL
            )
        self._folder = _short_folder()
        self.runtime_dir = self._folder / "run" / "memosd"
        self._environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self._folder / "run"),
            "XDG_DATA_HOME": str(self._folder / "data"),
            "MEMOSD_RUNTIME_DIR": str(self.runtime_dir),
            # torch makes a folder in /tmp now and then; here it goes with the rest.
            "TORCHINDUCTOR_CACHE_DIR": str(self._folder / "torch"),
        }
        self._daemon: subprocess.Popen[bytes] | None = None
        self._actors: list[Actor] = []
        self._step = 0
        self.verified = 0

    def __enter__(self) -> "Stage":
        for folder in ("run", "data"):
            (self._folder / folder).mkdir(mode=0o700)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for actor in self._actors:
            actor.kill()
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.kill()
            self._daemon.wait()
        if kind is not None:
            self._show_log()
        shutil.rmtree(self._folder)

    # -- processes -----------------------------------------------------------------------------

    def start_daemon(self) -> tuple[int, float]:
        """Its pid, and the seconds until it answered. Errors: ETIMEDOUT, EIO (it ended)."""
        begin = time.perf_counter()
        with self._log_path.open("ab") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "memosd", "--user", "--language-model", _model()],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        while not self._is_answering():
            if self._daemon.poll() is not None:
                raise MemError(Errno.EIO, f"the daemon ended with {self._daemon.returncode}")
            if time.perf_counter() - begin > _READY_S:
                raise MemError(Errno.ETIMEDOUT, f"the daemon was not ready within {_READY_S} s")
            time.sleep(_POLL_S)
        return self._daemon.pid, time.perf_counter() - begin

    def kill_daemon(self) -> None:
        """As a power cut would: no handler runs, nothing is written."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGKILL)
        self._daemon.wait()

    def stop_daemon(self) -> int:
        """Ask it to end, as an administrator would; its exit status. Errors: ETIMEDOUT."""
        assert self._daemon is not None
        self._daemon.terminate()
        try:
            return self._daemon.wait(_READY_S)
        except subprocess.TimeoutExpired:
            raise MemError(Errno.ETIMEDOUT, f"it did not end within {_READY_S} s") from None

    def actor(self, role: str, *arguments: str) -> Actor:
        """Start another process in a role of actors.py."""
        return self._start("actors", role, arguments)

    def thinker(self, role: str, *arguments: str) -> Actor:
        """Start another process in a role of thinkers.py: one that runs a model."""
        return self._start("thinkers", role, arguments)

    def student(self, role: str, *arguments: str) -> Actor:
        """Start another process in a role of students.py: one that is asked without a text."""
        return self._start("students", role, arguments)

    def _start(self, module: str, role: str, arguments: tuple[str, ...]) -> Actor:
        actor = Actor(module, role, arguments, self._environment)
        self._actors.append(actor)
        return actor

    def connect(self) -> libmem.Client:
        """A client of the demo's own."""
        return libmem.connect(self.runtime_dir, name="demo")

    def patient(self) -> libmem.Client:
        """One that waits for minutes."""
        return libmem.connect(self.runtime_dir, timeout_s=_PATIENCE_S, name="demo")

    def _is_answering(self) -> bool:
        if not (self.runtime_dir / CONTROL_SOCKET).exists():
            return False
        try:
            libmem.connect(self.runtime_dir, timeout_s=1.0, name="demo").close()
        except MemError:
            return False  # a socket that a killed daemon left, or one not yet served
        return True

    # -- the screen ------------------------------------------------------------------------------

    def title(self, text: str, subtitle: str) -> None:
        self.console.print(Text.assemble((text, "bold"), "\n", (subtitle, "dim")))

    def step(self, text: str) -> None:
        """Begin the next step."""
        self._step += 1
        self.console.print(Text.assemble("\n", (f"{self._step}  ", "bold cyan"), (text, "bold")))

    def tell(self, pid: int | None, *parts: str | tuple[str, str]) -> None:
        """One line; with the pid of the process that did it."""
        who = f"pid {pid}" if pid is not None else ""
        self.console.print(
            Text.assemble((f"   {who}".ljust(_INDENT), "dim"), *parts), soft_wrap=True
        )

    def quote(self, *parts: tuple[str, str]) -> None:
        """One line of somebody's text, cut where the screen ends."""
        line = Text.assemble(" " * _INDENT, *parts)
        self.console.print(line, no_wrap=True, overflow="ellipsis")

    def show(self, table: Table) -> None:
        """A table, in line with what is told."""
        self.console.print(Padding(table, (0, 0, 0, _INDENT)))

    def verify(self, is_true: bool, claim: str) -> None:
        """Print the claim as checked. Errors: EIO when it is not true."""
        mark, style = ("✓", "green") if is_true else ("✗", "bold red")
        self.tell(None, (f"{mark} ", style), claim)
        if not is_true:
            raise MemError(Errno.EIO, f"not as told: {claim}")
        self.verified += 1

    @property
    def _log_path(self) -> Path:
        return self._folder / "memosd.log"

    def _show_log(self) -> None:
        if self._log_path.exists():
            lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            self.console.print(Text("\nThe daemon's last words:", "bold"))
            for line in lines[-15:]:
                self.console.print(Text(f"   {line}"), soft_wrap=True)


def _model() -> str:
    """For transitions; `none` where `make models` fetched none."""
    try:
        return str(find_model(SMOLLM2))
    except MemError:
        return "none"


def _short_folder() -> Path:
    """A fresh directory whose socket's address fits, whatever TMPDIR says."""
    folder = Path(tempfile.mkdtemp(prefix="memosd-demo-"))
    if len(os.fsencode(folder / "run" / "memosd" / CONTROL_SOCKET)) <= _SOCKET_PATH_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="memosd-demo-", dir="/tmp"))

"""Client processes beside the test's own, to share with and to kill.

An actor runs a few lines of Python with `client` (a libmem client), `say(word)` and `hear()`
(wait for the test's next word). As another user where the test is run by root.
"""

import os
import signal
import subprocess
import sys
from types import TracebackType

import pytest

from tests.e2e.daemon import PATIENCE_S, ROOT, Daemon

__all__ = ["Actor", "require_other_users"]

_PRELUDE = """
import os, sys
import libmem
from libmem import Errno, MemError

def say(word):
    print(word, flush=True)

def hear():
    return sys.stdin.readline().rstrip("\\n")

def errno_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except MemError as error:
        return error.errno.name
    return "OK"

import libmem.abi.calls, tests.e2e.raw
if len(sys.argv) > 2:
    # Now and not earlier: the user may not be allowed to read this Python and its modules.
    uid, *groups = map(int, sys.argv[2:])
    os.setgroups(groups)
    os.setresgid(groups[0], groups[0], groups[0])
    os.setresuid(uid, uid, uid)
client = libmem.connect(sys.argv[1])
"""


class Actor:
    """One such process. A context manager: it is killed at the block's end if it still runs."""

    def __init__(
        self, daemon: Daemon, program: str, uid: int = -1, groups: tuple[int, ...] = ()
    ) -> None:
        """`uid`: run as that user, whose only groups are `groups`, the first one primary."""
        ids = [] if uid < 0 else [str(number) for number in (uid, *groups)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PRELUDE + program, str(daemon.runtime_dir), *ids],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Actor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def hear(self) -> str:
        """The next word that it says; its end is a failure."""
        assert self._process.stdout is not None
        word: str = self._process.stdout.readline()
        assert word, f"the actor ended with status {self._process.wait(PATIENCE_S)}"
        return word.rstrip("\n")

    def expect(self, word: str) -> None:
        """The next word that it says must be this one."""
        heard = self.hear()
        assert heard == word, f"{heard!r} instead of {word!r}"

    def tell(self, word: str = "go on") -> None:
        """Say something to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)

    def end(self) -> None:
        """Wait for its good end."""
        assert self._process.wait(PATIENCE_S) == 0


def require_other_users() -> None:
    """Skip the test where it cannot make processes of other users."""
    if os.geteuid() != 0:
        pytest.skip("only root makes processes of other users")

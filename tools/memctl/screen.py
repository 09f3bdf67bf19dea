"""A terminal's whole screen for a while: frames of lines, a key that ends it, its size.

Plain control sequences that every terminal of the last decades knows (xterm, VT100); nothing of the
user's screen is lost. Invariant: however the block is left, the terminal is as it was. One at a
time, on the main thread: signals are told to that one.
"""

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from memosd.tools.memctl.daemon import Line
from memosd.tools.memctl.units import printable

__all__ = ["Screen", "open_screen"]

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""The other screen, no cursor, no wrapping: a character may be wider than one cell."""
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"
_PLAIN: Final = "\x1b[0m"
_STYLES: Final = {
    "bold": "\x1b[1m", "dim": "\x1b[2m", "red": "\x1b[31m", "green": "\x1b[32m",
    "yellow": "\x1b[33m", "bold red": "\x1b[1;31m",
}  # fmt: skip
_QUIT: Final = b"qQ\x03\x04"


class Screen:
    """Made by `open_screen`."""

    def __init__(self, wake_fd: int, key_fd: int | None) -> None:
        self._wake_fd = wake_fd
        self._key_fd = key_fd
        self._has_colour = "NO_COLOR" not in os.environ

    @property
    def size(self) -> tuple[int, int]:
        """(columns, lines), as they are now."""
        size = shutil.get_terminal_size()
        return size.columns, size.lines

    def show(self, lines: Sequence[Line]) -> None:
        """Replace what is on the screen; what does not fit is cut off."""
        columns, height = self.size
        shown = [self._cut(line, columns) + _CLEAR_LINE for line in lines[:height]]
        sys.stdout.write(_HOME + "\r\n".join(shown) + _CLEAR_BELOW)
        sys.stdout.flush()

    def _cut(self, line: Line, columns: int) -> str:
        text = ""
        for part, style in line:
            piece = printable(part)[:columns]
            columns -= len(piece)
            code = _STYLES.get(style, "") if self._has_colour else ""
            text += f"{code}{piece}{_PLAIN}" if code else piece
        return text

    def wait(self, seconds: float) -> bool:
        """Until the time has passed, or the window has another size; False: a key said to end."""
        end = time.monotonic() + seconds
        watched = [self._wake_fd] + ([self._key_fd] if self._key_fd is not None else [])
        while (left := end - time.monotonic()) > 0:
            ready = select.select(watched, [], [], left)[0]
            if self._wake_fd in ready:
                os.read(self._wake_fd, 64)
                return True
            if self._key_fd in ready and self._key_fd is not None:
                keys = os.read(self._key_fd, 64)
                if not keys:  # the terminal has hung up
                    return False
                if any(key in _QUIT for key in keys):
                    return False
        return True


@contextmanager
def open_screen() -> Iterator[Screen]:
    """Take the terminal over, and give it back as it was."""
    with ExitStack() as undo:
        wake_fd = _wake_up(undo)
        key_fd = _read_keys(undo)
        sys.stdout.write(_ENTER)
        undo.callback(_give_back)
        yield Screen(wake_fd, key_fd)


def _give_back() -> None:
    sys.stdout.write(_LEAVE)
    sys.stdout.flush()


def _wake_up(undo: ExitStack) -> int:
    """A descriptor that is readable after a signal: select goes on sleeping otherwise (PEP 475)."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    undo.callback(os.close, read_fd)
    undo.callback(os.close, write_fd)
    undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(write_fd))
    undo.callback(signal.signal, signal.SIGWINCH, signal.signal(signal.SIGWINCH, _resized))
    return read_fd


def _resized(_number: int, _frame: Any) -> None:
    """The descriptor tells."""


def _read_keys(undo: ExitStack) -> int | None:
    """Keys as they are pressed, unseen; None where standard input is no terminal."""
    if not sys.stdin.isatty():
        return None
    fd = sys.stdin.fileno()
    undo.callback(termios.tcsetattr, fd, termios.TCSADRAIN, termios.tcgetattr(fd))
    tty.setcbreak(fd)
    return fd

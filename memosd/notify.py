"""Telling systemd how the daemon is: READY, STATUS, WATCHDOG, STOPPING (sd_notify(3)).

The protocol is one datagram of `KEY=value` lines to the socket in $NOTIFY_SOCKET; without one
every call does nothing.
"""

import os
import socket

__all__ = ["Notifier"]


class Notifier:
    """The service manager's ear."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]  # the abstract namespace

    def send(self, *lines: str) -> None:
        """Best effort: a service manager that does not listen must not stop the daemon."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ear:
            try:
                ear.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return

    @staticmethod
    def watchdog_period_ns() -> int | None:
        """Half of what the service manager allows between two signs of life, or None."""
        pid = os.environ.get("WATCHDOG_PID")
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        if (pid and pid != str(os.getpid())) or not microseconds.isdigit():
            return None
        return int(microseconds) * 1000 // 2

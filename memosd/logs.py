"""Structured logs: one event per line, as logfmt or JSON, to standard error.

Under systemd the journal adds time and priority, so lines start with `<N>` (sd-daemon(3)) and
carry no time of their own.
"""

import logging
import os
import sys
from typing import Any, Final

import structlog

__all__ = ["configure"]

_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure(log_format: str, level: str) -> None:
    """`log_format`: auto (journal or people), logfmt or json; `level` as in logging."""
    is_journal = "JOURNAL_STREAM" in os.environ
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
    ]
    if not is_journal:
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    if log_format == "json":
        processors.append(structlog.processors.JSONRenderer())
    else:
        processors.append(_logfmt(with_time=not is_journal))
    if is_journal:
        processors.append(_with_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        # Looked up at each write: a test that captures standard error sees the lines.
        logger_factory=lambda *_args: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _logfmt(*, with_time: bool) -> Any:
    first = ["timestamp"] if with_time else []
    return structlog.processors.LogfmtRenderer(key_order=[*first, "level", "event"])


def _with_priority(_logger: Any, method: str, line: str | bytes) -> str:
    text = line.decode() if isinstance(line, bytes) else line
    return f"<{_PRIORITY.get(method, 6)}>{text}"

"""Sizes, times and modes between numbers and what people read and type.

Pure functions. Invariant: what they return is one printable line, so that nothing a cube's author
wrote can steer a terminal. Any command may call them.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from libmem.abi.errors import Errno, MemError

__all__ = [
    "counted",
    "duration",
    "human_bytes",
    "local_time",
    "measured",
    "mode_text",
    "parse_bytes",
    "parse_mode",
    "parse_time",
    "printable",
    "seconds_text",
]

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?(B|[KMGTP](?:iB)?)?", re.IGNORECASE)
_OCTAL: Final = re.compile(r"0?[0-7]{3}")
_NS: Final = 1_000_000_000


def human_bytes(size_bytes: int) -> str:
    """`98566144` -> `94.0 MiB`; below 1 KiB exact."""
    value, unit = float(size_bytes), 0
    # 1023.95 would be shown as 1024.0: go on to the next unit there.
    while value >= 1023.95 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{size_bytes} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def parse_bytes(text: str) -> int:
    """`512MiB`, `4 GiB`, `1.5G` or a number of bytes. Errors: EINVAL."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise MemError(Errno.EINVAL, f"{text!r} is not a size such as 4096, 512MiB or 4GiB")
    prefixes = [unit[0] for unit in _UNITS]
    return int(float(match[1]) * 1024 ** prefixes.index((match[2] or "B")[0].upper()))


def parse_mode(text: str) -> int:
    """`0640` or `640`, always octal. Errors: EINVAL."""
    if _OCTAL.fullmatch(text) is None:
        raise MemError(Errno.EINVAL, f"{text!r} is not an octal mode such as 0640")
    return int(text, 8)


def parse_time(text: str, *, is_end: bool = False) -> int:
    """`2024-05-07`, `2024-05-07 18:30` or with a zone, in ns; without one the local zone counts.

    A day alone is its first moment, or its last one with `is_end`. Errors: EINVAL.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
        if is_end and len(text.strip()) <= len("2024-05-07"):
            moment += timedelta(days=1, microseconds=-1)
        since = moment.astimezone(UTC) - datetime.fromtimestamp(0, UTC)
    except (ValueError, OverflowError):
        raise MemError(Errno.EINVAL, f"{text!r} is not a time such as 2024-05-07") from None
    return (since.days * 86_400 + since.seconds) * _NS + since.microseconds * 1_000


def mode_text(mode: int) -> str:
    """`0o640` -> `rw-r-----`."""
    return "".join(
        letter if mode & (0o400 >> place) else "-" for place, letter in enumerate("rwxrwxrwx")
    )


def counted(number: int, noun: str) -> str:
    """`1 cube`, `1,234 cubes`; for nouns that take an s."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def local_time(time_ns: int, timespec: str = "seconds") -> str:
    """ISO 8601 in the local zone with its offset; `-` for 0, which means never."""
    if not time_ns:
        return "-"
    seconds, rest_ns = divmod(time_ns, _NS)
    try:
        moment = datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):
        return f"{time_ns} ns"  # a header may hold any number, also one past the year 9999
    return moment.replace(microsecond=rest_ns // 1000).isoformat(sep=" ", timespec=timespec)


def duration(length_ns: int) -> str:
    """`3 d 4 h`, `2 min 5 s`, `12 s`: the two largest units."""
    rest = length_ns // _NS
    parts = []
    for name, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, seconds)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def seconds_text(seconds: float) -> str:
    """`0.0031` -> `3.1 ms`; from two minutes on as `duration`."""
    for least, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 120:
            return duration(int(seconds * _NS))
        if seconds >= least:
            return f"{seconds / least:.1f} {unit}"
    return "0 s" if seconds <= 0 else f"{seconds * 1e9:.0f} ns"


_SECONDS: Final = {"_s": 1.0, "_ms": 1e-3, "_us": 1e-6, "_ns": 1e-9}


def measured(name: str, value: float | str) -> str:
    """A number of the kernel's as people read it: `used_bytes`, 4096 -> `used=4.0 KiB`."""
    if isinstance(value, str):
        return f"{name}={value}"
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes')}={human_bytes(int(value))}"
    for suffix, scale in _SECONDS.items():
        if name.endswith(suffix):
            return f"{name.removesuffix(suffix)}={seconds_text(value * scale)}"
    return f"{name}={value:,}" if isinstance(value, int) else f"{name}={value:.4g}"


def printable(text: str) -> str:
    """`text` with control and unprintable characters escaped, so that a terminal only shows it."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )

"""What this process holds of cubes' memory, by the operating system's own books.

Reads /proc/self/smaps (proc(5)). For the benchmark and the demo that tell how many processes
share one copy.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Mapped", "mapped_cubes"]

_AREA: Final = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$")


class Mapped(NamedTuple):
    """Sums over the areas that map sealed memory, in KiB."""

    pss: int
    """Proportional set size: a page that n processes map counts 1/n."""
    rss: int
    private: int
    """Pages of its own: copied on write."""


def mapped_cubes() -> Mapped:
    """Of this process."""
    sums = {"Pss": 0, "Rss": 0, "Private_Dirty": 0}
    is_cube = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        area = _AREA.match(line)
        field, _, value = line.partition(":")
        if area is not None:
            is_cube = area[1].startswith("/memfd:")
        elif is_cube and field in sums:
            sums[field] += int(value.split()[0])
    return Mapped(*sums.values())

"""Writes the documents that are derived from code: `python -m memosd.tools.docs`, `make docs`.

Owns the list of those documents. Invariant: what is written depends on the checkout alone, not on
the terminal, the time or the machine, so that a test can compare it with what is committed.
"""

import sys
import tomllib
from pathlib import Path
from typing import Final

from memosd.tools.docs import commands, settings, syscalls

__all__ = ["ROOT", "main", "pages"]

ROOT: Final = Path(__file__).resolve().parents[2]


def pages() -> dict[str, str]:
    """Every generated document: its path below the root, its text."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    return {
        "docs/syscalls.md": syscalls.render(),
        "docs/man/memctl.1": commands.render_memctl(version),
        "docs/man/memos-bench.1": commands.render_bench(version),
        "docs/man/memosd.toml.5": settings.render(version, ROOT / "etc/memosd.toml"),
        "docs/man/memosd.8": commands.render_memosd(version),
    }


def main() -> int:
    """Write what changed and name it; 1 when this is no checkout."""
    if not (ROOT / "docs").is_dir():
        print(f"docs: {ROOT} is no checkout of memosd", file=sys.stderr)
        return 1
    for name, text in pages().items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

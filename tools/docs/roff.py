"""Man pages as text: the few requests of man(7) that ours need.

Pure; knows nothing of memosd. Invariant: whatever text is given appears as it is, never as a
request: backslashes, leading dots and quotes are escaped, and hyphens can be copied and searched.
"""

from collections.abc import Iterable
from typing import Final

__all__ = ["Page"]

_ESCAPES: Final = str.maketrans({"\\": r"\e", "-": r"\-"})
_MANUALS: Final = {1: "User Commands", 5: "File Formats", 8: "System Administration"}


def _escaped(text: str) -> str:
    lines = text.translate(_ESCAPES).split("\n")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in lines)


class Page:
    """One man page, written from top to bottom."""

    def __init__(self, name: str, section: int, version: str) -> None:
        self._lines = [
            r".\" Written by `make docs` from the code: change that, not this.",
            f'.TH {_escaped(name).upper()} {section} "" "memosd {version}" "{_MANUALS[section]}"',
            ".nh",  # no hyphenation, no stretched spaces: names stay whole
            ".ad l",
        ]

    def section(self, title: str) -> None:
        self._lines.append(f'.SH "{_escaped(title).upper()}"')

    def subsection(self, title: str) -> None:
        self._lines.append(f'.SS "{_escaped(title)}"')

    def synopsis(self, command: str, rest: str) -> None:
        """A line of the synopsis: the command in bold, what follows it as it is."""
        self._lines += [".PP", rf"\fB{_escaped(command)}\fR {_escaped(rest)}".rstrip()]

    def text(self, text: str) -> None:
        """Paragraphs, parted by empty lines."""
        for paragraph in text.strip().split("\n\n"):
            self._lines += [".PP", _escaped(paragraph)]

    def item(self, tags: Iterable[str], text: str) -> None:
        """Terms in bold with indented text; terms beyond the first share it."""
        request = ".TP"
        for tag in tags:
            self._lines += [request, rf"\fB{_escaped(tag)}\fR"]
            request = ".TQ"
        first, *others = text.strip().split("\n\n") if text.strip() else [r""]
        self._lines.append(_escaped(first) or r"\&")
        for paragraph in others:
            self._lines += [".IP", _escaped(paragraph)]

    def verbatim(self, text: str) -> None:
        """Lines that keep their breaks and spaces."""
        self._lines += [".PP", ".nf", ".RS 4", _escaped(text.strip("\n")), ".RE", ".fi"]

    def render(self) -> str:
        return "\n".join(self._lines) + "\n"

"""What changes on a terminal: colour, panels and bars; never the facts."""

import re
from pathlib import Path

import pytest

from libmem.abi.calls import Fsck, FsckReply, Info, Readdir, ReaddirReply, Search, SearchReply
from libmem.abi.structs import Hit
from tests.tools.memctl.fake import Memctl, make_stat
from tests.tools.memctl.test_daemon import make_info

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch, memctl: Memctl) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    memctl.is_terminal = True


def test_tables_have_colour_and_the_same_cells(memctl: Memctl) -> None:
    reply = ReaddirReply(entries=(make_stat("/notes/[red]x"),), folders=())
    out = memctl("ls", "-l", "/notes", answers={Readdir: reply}).out
    assert ESCAPE.search(out)
    words = ESCAPE.sub("", out).split()
    assert words[:2] == ["MODE", "OWNER"]
    assert words[-1] == "/notes/[red]x"  # a name is no markup


def test_json_stays_json(memctl: Memctl) -> None:
    reply = ReaddirReply(entries=(make_stat("/notes/a"),), folders=())
    outcome = memctl("ls", "/notes", "--json", answers={Readdir: reply})
    assert outcome.lines[0]["name"] == "/notes/a"


def test_the_status_is_a_panel(memctl: Memctl) -> None:
    out = ESCAPE.sub("", memctl("status", answers={Info: make_info()}).out)
    assert "memosd 0.1.0" in out
    assert "████████████░░░░░░░░░░░░  50%" in out


def test_matched_words_stand_out(memctl: Memctl) -> None:
    hit = Hit("/a/b", bytes(16), 1, 1.0, 1, snippet="a \x02word\x03 here")
    out = memctl("search", "word", answers={Search: SearchReply(hits=(hit,))}).out
    assert "a \x1b[1;33mword\x1b[0m here" in out


def test_no_color_is_obeyed(memctl: Memctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    hit = Hit("/a/b", bytes(16), 1, 1.0, 1, snippet="a \x02word\x03 here")
    out = memctl("search", "word", answers={Search: SearchReply(hits=(hit,))}).out
    assert "33m" not in out


def test_long_work_shows_a_bar_on_standard_error(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (9 << 20))
    outcome = memctl("put", str(path), "/notes/large")
    assert "/notes/large" in outcome.err
    assert "9.4" in ESCAPE.sub("", outcome.err) or "9.0" in ESCAPE.sub("", outcome.err)
    assert outcome.out == "/notes/large@v7  9.0 MiB\n"


def test_programs_get_no_bar(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (9 << 20))
    assert memctl("put", str(path), "/notes/large", "--json").err == ""
    answers = {Info: make_info(), Fsck: FsckReply(1, ())}
    assert memctl("fsck", "--json", answers=answers).err == ""
    assert "verifying" in memctl("fsck").err


def test_short_work_has_no_bar(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"x" * (1 << 20))
    assert memctl("put", str(path), "/notes/small").err == ""

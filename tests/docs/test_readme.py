"""The README's lists are complete and true: commands, installation, files to read."""

import re

import typer

from memosd.tools.memctl.__main__ import app
from tests.docs.markdown import ROOT, blocks

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def commands_listed() -> list[str]:
    """The names in the first column of the table of commands."""
    rows = TEXT.partition("| command | what it does |")[2].partition("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_the_table_has_every_command_once() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert sorted(commands_listed()) == sorted(known)


def test_the_first_block_is_the_two_commands() -> None:
    first = blocks(README)[0]
    assert [line.split("#")[0].strip() for line in first.text.splitlines()] == [
        "make demo",
        "make test",
    ]


def test_the_install_follows_the_files_own_heads() -> None:
    """Each system file says where it is to be installed; the README installs it there."""
    for name in ("memosd.service", "memosd.sysusers"):
        head = (ROOT / "etc" / name).read_text(encoding="utf-8")
        place = re.search(r"#\s+install as (/\S+?),?\s", head)
        assert place is not None
        assert f"etc/{name} {place[1]}\n" in TEXT


def test_the_reading_order_names_files_that_exist() -> None:
    part = TEXT.partition("## Reading order")[2].partition("\n## ")[0]
    files = re.findall(r"`([\w/]+\.py)`", part)
    assert len(files) > 20
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert len(files) == len(set(files))


def test_the_example_is_about_ten_lines() -> None:
    part = TEXT.partition("## libmem")[2]
    first = part.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 10

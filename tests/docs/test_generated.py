"""The generated documents are current, and good man pages."""

import shutil
import subprocess

import pytest

from libmem.abi.structs import Governance, Stat
from libmem.abi.syscalls import SYSCALLS
from memosd.tools.docs.__main__ import pages
from memosd.tools.docs.roff import Page
from memosd.tools.fields import fields_of
from tests.docs.markdown import ROOT

PAGES = pages()


@pytest.mark.parametrize("path", PAGES)
def test_what_is_committed_is_current(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == PAGES[path], "run `make docs`"


def test_no_other_man_page_lies_there() -> None:
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/man").iterdir()}
    assert there == {path for path in PAGES if path.startswith("docs/man/")}


@pytest.mark.parametrize("path", [path for path in PAGES if path.startswith("docs/man/")])
def test_groff_finds_no_fault(path: str) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        [groff, "-man", "-ww", "-Tutf8", "-z", "-b", str(ROOT / path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_every_syscall_has_its_errors_and_arguments() -> None:
    calls = PAGES["docs/syscalls.md"].partition("## The calls")[2]
    for row in SYSCALLS:
        part = calls.partition(f"\n### {row.name}\n")[2].partition("\n### ")[0]
        assert row.doc in part
        for error in row.errors:
            assert f"`{error.name}`" in part
        for field in row.request.__struct_fields__:
            assert f"| `{field}` |" in part


def test_fields_carry_their_prose_and_defaults() -> None:
    by_name = {field.name: field for field in fields_of(Governance)}
    assert by_name["mode"].default == "0o600"
    assert by_name["owner_uid"].doc == "-1: the caller."
    assert {field.name for field in fields_of(Stat) if not field.default} >= {"name", "digest"}


def test_text_in_a_man_page_is_never_a_request() -> None:
    page = Page("x", 1, "0")
    page.text(".so /etc/passwd\n'quoted' \\fB --option")
    *_, first, second = page.render().splitlines()
    assert first == r"\&.so /etc/passwd"
    assert second == r"\&'quoted' \efB \-\-option"

"""What the documents point to exists: files, headings, and every path they name in passing."""

import re
from pathlib import Path

import pytest

from tests.docs.markdown import DOCUMENTS, ROOT, anchors, links, prose

TOP = ["etc", "docs", "kernel", "drivers", "libmem", "memosd", "tools", "tests"]
PATHS = re.compile(rf"`((?:{'|'.join(TOP)})/[\w./-]*)`")


def name(path: Path) -> str:
    """How a test is called."""
    return str(path.relative_to(ROOT))


def problem(document: Path, target: str) -> str:
    """Why a link leads nowhere; empty when it leads somewhere."""
    if target.startswith("https://"):
        return ""
    path, _, fragment = target.partition("#")
    place = (document.parent / path).resolve() if path else document
    if not place.exists():
        return "no such file"
    if fragment and fragment not in anchors(place):
        return "no such heading"
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    problems = {target: problem(document, target) for target in links(document)}
    assert {target: why for target, why in problems.items() if why} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_paths_that_are_named_exist(document: Path) -> None:
    named = set(PATHS.findall(prose(document)))
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_a_broken_link_is_found() -> None:
    readme = ROOT / "README.md"
    assert problem(readme, "docs/nothing.md") == "no such file"
    assert problem(readme, "docs/format.md#nothing") == "no such heading"
    assert problem(readme, "docs/format.md#page-files") == ""


def test_code_names_existing_documents() -> None:
    mention = re.compile(r"docs/[\w/.-]+\.md")
    sources = [
        path
        for top in ("kernel", "drivers", "libmem", "memosd", "tools")
        for path in (ROOT / top).rglob("*.py")
    ]
    found = {
        (name(path), match)
        for path in sources
        for match in mention.findall(path.read_text(encoding="utf-8"))
    }
    assert {pair for pair in found if not (ROOT / pair[1]).exists()} == set()
    assert found

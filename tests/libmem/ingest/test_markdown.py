"""Markdown along its structure: titles, whole blocks, nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from libmem.ingest.markdown import sections
from libmem.ingest.prose import PIECE_MAX

LINES = [
    "# Head", "## Sub *head*", "Setext\n===", "A paragraph of words.", "- item", "  - inner",
    "1. one", "> quoted", "```py", "```", "    indented", "| a | b |", "| --- | --- |", "| 1 | 2 |",
    "", "", "---", "[link]: http://x", "<div>", "long " * 500, "\\# no head",
]  # fmt: skip


def letters(text: str) -> str:
    return "".join(char for char in text if char.isalnum())


@given(st.lists(st.sampled_from(LINES), max_size=25).map("\n".join))
def test_sizes_hold_and_what_is_said_stays(text: str) -> None:
    found = list(sections(text))
    assert all(0 < len(section.text) <= PIECE_MAX for section in found)
    kept = letters("".join(section.title + section.text for section in found))
    for word in ("paragraph", "item", "inner", "quoted", "indented", "link", "long"):
        assert kept.count(word) >= text.count(word)


def test_what_only_looks_like_a_heading_is_kept() -> None:
    long = "a paragraph that somebody underlined " * 12
    found = list(sections(f"# A\n\n{long}\n---\n\n## Empty\n\n# B\n\nb\n\n# C"))
    assert [(section.title[:5], section.text) for section in found] == [
        ("A > a", long.strip()), ("A", "Empty"), ("B", "b"), ("", "C"),
    ]  # fmt: skip


def test_titles_are_the_paths_of_headings() -> None:
    text = "intro\n\n# A *b* `c`\none\n### Deep\ntwo\n## Sub\nthree\n# Z\nfour"
    assert [tuple(section) for section in sections(text)] == [
        ("", "intro"), ("A b c", "one"), ("A b c > Deep", "two"), ("A b c > Sub", "three"),
        ("Z", "four"),
    ]  # fmt: skip


def test_blocks_stay_whole_as_far_as_they_fit() -> None:
    code = "```\n" + "x = 1\n\n" * 200 + "```"
    table = "| a | b |\n| - | - |\n" + "\n".join(f"| {n} | y |" for n in range(120))
    listing = "\n".join(f"- item {n}" for n in range(120))
    text = f"words\n\n{code}\n\nmore words\n\n{table}\n\n{listing}\n"
    pieces = [section.text for section in sections(text)]
    assert all(any(block in piece for piece in pieces) for block in (code, table, listing))


def test_a_long_table_has_its_head_in_each_part() -> None:
    table = "| name | value |\n| --- | --- |\n" + "\n".join(f"| n{n} | v |" for n in range(400))
    pieces = [section.text for section in sections(table)]
    assert len(pieces) > 1
    assert all(piece.startswith("| name | value |\n| --- | --- |\n| n") for piece in pieces)
    assert "".join(pieces).count("| v |") == 400


def test_front_matter_is_kept_as_text() -> None:
    found = list(sections("---\ntitle: T\ntags: [a]\n---\n# Head\nbody\n"))
    assert [tuple(section) for section in found] == [
        ("", "title: T\ntags: [a]"), ("Head", "body"),
    ]  # fmt: skip


def test_deep_nesting_is_only_text() -> None:
    assert sum(len(section.text) for section in sections("> " * 5000 + "deep")) > 0

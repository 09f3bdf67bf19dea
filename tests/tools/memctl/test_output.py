"""JSON lines are complete and lossless; plain tables are aligned, streamed and free of colour."""

import json
from collections.abc import Iterator

import pytest

from libmem.abi.structs import CubeType, Stat
from memosd.tools.memctl.output import Column, Output, json_line, plain
from tests.tools.memctl.fake import make_stat

WORDS = (
    Column[str]("WORD", lambda word: word),
    Column[str]("LENGTH", lambda word: str(len(word)), is_right=True),
)


def test_json_has_every_field_and_bytes_as_hex() -> None:
    shown = json.loads(json_line(make_stat(attributes={"weights": b"\xff", "layers": [1, 2]})))
    assert set(shown) == set(Stat.__struct_fields__)
    assert shown["id"] == bytes(range(16)).hex()
    assert shown["pins"] == 0  # a default, which the wire leaves out
    assert shown["type"] == "plaintext"
    assert shown["descriptive"]["title"] == "A title"
    assert shown["attributes"] == {"weights": "ff", "layers": [1, 2]}


def test_plain_takes_whatever_an_attribute_holds() -> None:
    assert plain({1: (CubeType.BLOB, {b"a"}), "at": 2.5, "is": True, "none": None}) == {
        "1": ["blob", ["61"]],
        "at": 2.5,
        "is": True,
        "none": None,
    }
    assert plain(object).startswith("<class")


def test_plain_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    assert Output(is_json=False).table(WORDS, ["a", "seventeen", "four"]) == 3
    assert capsys.readouterr().out.splitlines() == [
        "WORD       LENGTH",
        "a               1",
        "seventeen       9",
        "four            4",
    ]


def test_a_table_without_rows_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert Output(is_json=False).table(WORDS, []) == 0
    assert capsys.readouterr().out == ""


def test_a_long_table_streams_with_one_heading(capsys: pytest.CaptureFixture[str]) -> None:
    seen = 0

    def words() -> Iterator[str]:
        nonlocal seen
        for number in range(2500):
            if number == 2000:
                seen = capsys.readouterr().out.count("\n")
            yield f"word{number}"

    assert Output(is_json=False).table(WORDS, words()) == 2500
    assert seen == 2001  # two batches and the heading, before the third was even asked for
    assert "WORD" not in capsys.readouterr().out


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Output(is_json=False).table(WORDS, ["\x1b[2Jgone\n"])
    assert capsys.readouterr().out.splitlines()[1] == "\\x1b[2Jgone\\n       9"


def test_json_tables_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert Output(is_json=True).table(WORDS, iter(["a", "é"])) == 2
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ["a", "é"]


def test_styles_are_dropped_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Output(is_json=False).styled([("bold", "bold"), (" [red]not markup[/]", "")])
    assert capsys.readouterr().out == "bold [red]not markup[/]\n"

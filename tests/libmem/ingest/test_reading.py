"""Bytes to texts, JSON to records, names to folders; duplicates between texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.errors import Errno, MemError
from libmem.abi.names import parse_name
from libmem.ingest.decoding import decoded
from libmem.ingest.duplicates import is_same, normal
from libmem.ingest.names import folder_of, numbered, session_of, telling
from libmem.ingest.records import parsed, records

TEXT = "Größe € naïve\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"], ids=str)
def test_texts_of_other_encodings_are_read(encoding: str) -> None:
    assert decoded(TEXT.encode(encoding), "f") == TEXT


def test_line_ends_become_plain() -> None:
    assert decoded(b"a\r\nb\rc\n", "f") == "a\nb\nc\n"
    assert decoded(b"caf\xe9 \x81", "f") == "café \x81"


@pytest.mark.parametrize(
    "payload",
    [b"\x89PNG\r\n\x1a\n\0", b"text\0text", b"\xff\xfea", b"\xef\xbb\xbf\xff", b"\x01\x02"],
    ids=repr,
)
def test_what_is_no_text_is_refused(payload: bytes) -> None:
    with pytest.raises(MemError, match="file\\.bin") as caught:
        decoded(payload, "file.bin")
    assert caught.value.errno is Errno.EILSEQ


@given(st.binary(max_size=200))
def test_any_bytes_are_a_clean_text_or_refused(payload: bytes) -> None:
    try:
        text = decoded(payload, "f")
    except MemError:
        return
    assert "\0" not in text
    assert text.encode().decode() == text


def test_json_is_one_value_or_one_in_each_line() -> None:
    assert parsed('{"a": 1}', "f") == {"a": 1}
    assert parsed('{"a": 1}\n\n{"a": 2}\n', "f") == [{"a": 1}, {"a": 2}]
    with pytest.raises(MemError, match="line 2"):
        parsed('{"a": 1}\n{"a"\n', "f")
    with pytest.raises(MemError, match="not JSON"):
        parsed("{", "f")
    with pytest.raises(MemError, match="not JSON"):
        parsed("[" * 100_000, "f")


def test_records_are_json_and_strings_texts() -> None:
    assert list(records([{"a": 1}, "text", None, 3])) == [
        ("application/json", '{"a":1}'), ("", "text"), ("application/json", "3"),
    ]  # fmt: skip


labels = st.lists(st.text(max_size=200), min_size=1, max_size=3).map("/".join)


@given(labels)
def test_any_label_is_a_name(label: str) -> None:
    folder = folder_of("/n/sub", label)
    for name in (numbered(folder, 7), telling(folder, bytes(16), 2)):
        if len(name.encode()) <= 480:
            assert parse_name(name) == name
    assert session_of(folder).startswith("sub/")


@given(labels, labels)
def test_different_labels_have_different_folders(one: str, other: str) -> None:
    assert (folder_of("/n", one) == folder_of("/n", other)) == (one == other)


def test_memories_need_a_namespace() -> None:
    assert folder_of("/n/", "a/b.md") == "/n/a/b.md"
    with pytest.raises(MemError):
        folder_of("/", "a")


WORDS = " ".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(100))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (WORDS, True),
        (WORDS.upper() + " \n", True),
        (WORDS + " more", True),
        (WORDS + " never", False),
        (WORDS + " 7", False),
        (WORDS + " isn't", False),
        (" ".join(WORDS.split()[::-1]), False),
        (WORDS[: len(WORDS) // 2], False),
        ("", False),
    ],
)
def test_duplicates_say_the_same(other: str, expected: bool) -> None:
    assert is_same(normal(WORDS), normal(other)) is expected
    assert is_same(normal(other), normal(WORDS)) is expected

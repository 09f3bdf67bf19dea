"""What the plaintext driver lets in, and what it tells the index."""

import mmap

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.errors import Errno
from libmem.abi.structs import Descriptive
from memosd.drivers.plaintext.top import PlaintextDriver
from tests.drivers.memory import raises

TEXT = Descriptive()
JSON = Descriptive(media_type="application/json")
MIB = 1 << 20

driver = PlaintextDriver()


def refused_at(payload: bytes, descriptive: Descriptive) -> int:
    """Where the driver says that the payload is wrong."""
    with raises(Errno.EILSEQ) as caught:
        driver.check_payload(payload, descriptive, {})
    offset = caught.value.detail["offset_bytes"]
    assert isinstance(offset, int)
    return offset


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text/plain",
        "TEXT/Markdown",
        "text/plain; charset=utf-8",
        "application/json",
        "application/ld+json",
        "application/json; charset=utf-8",
    ],
)
def test_text_and_json_are_plaintext(media_type: str) -> None:
    driver.check_header(Descriptive(media_type=media_type), {"any": ["attribute", 1, None]})
    driver.check_payload(b"1", Descriptive(media_type=media_type), {})


@pytest.mark.parametrize("media_type", ["image/png", "application/pdf", "json", "text", "x/text/y"])
def test_other_media_types_are_refused(media_type: str) -> None:
    with raises(Errno.EINVAL):
        driver.check_header(Descriptive(media_type=media_type), {})
    with raises(Errno.EINVAL):
        driver.check_payload(b"1", Descriptive(media_type=media_type), {})


def test_only_json_promises_more_than_text() -> None:
    markdown = Descriptive(title="T", media_type="text/markdown")
    linked = Descriptive(media_type="application/ld+json")
    assert driver.is_new_promise(TEXT, JSON)
    assert driver.is_new_promise(markdown, linked)
    for old, new in ((TEXT, markdown), (JSON, TEXT), (JSON, linked), (linked, markdown)):
        assert not driver.is_new_promise(old, new)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_every_text_is_let_in(text: str) -> None:
    driver.check_payload(text.encode(), TEXT, {})


@pytest.mark.parametrize(
    ("payload", "offset"),
    [
        (b"\xff", 0),
        (b"abc\x80", 3),
        (b"abc\xc3", 3),  # ends inside a character
        ("héron".encode("latin-1"), 1),
        (b"a\xed\xa0\x80", 1),  # a surrogate
        (b"\xc0\x80", 0),  # NUL in two bytes
        ("né\0".encode(), 3),
    ],
)
def test_where_a_text_is_wrong_is_said(payload: bytes, offset: int) -> None:
    assert refused_at(payload, TEXT) == offset


@given(st.integers(0, 6), st.sampled_from([b"\xff", b"\0", b"\xe8\xaa"]))
def test_characters_across_slices_are_whole(shift: int, wrong: bytes) -> None:
    """Three-byte characters, moved so that every slice cuts one at another place."""
    good = b"x" * shift + "語".encode() * (MIB // 3 * 2)
    driver.check_payload(good, TEXT, {})
    assert refused_at(good + wrong, TEXT) == len(good)


def test_large_payloads_are_checked_where_they_lie() -> None:
    with mmap.mmap(-1, 8 * MIB) as memory:
        memory[:] = b"a" * len(memory)
        with memoryview(memory) as view:
            driver.check_payload(view, TEXT, {})


@pytest.mark.parametrize(
    "payload",
    ["{}", "[]", '"a"', "1e999", "null", ' {"a": [1, 2.5, true, "\\u0000\\n"]} ', "9" * 4000],
)
def test_json_is_let_in(payload: str) -> None:
    driver.check_payload(payload.encode(), JSON, {})
    assert driver.index_text(payload.encode(), JSON) is not None


@pytest.mark.parametrize(
    ("payload", "offset"),
    [
        (b"", 0),
        (b"   ", 3),
        (b'{"a": 1', 7),
        (b'{"a": 1,}', 8),
        (b'{"a": tru}', 7),
        (b"[1, nan]", 5),
        (b"\xef\xbb\xbf{}", 0),
        (b'"\xff"', 1),
        (b'{"a": "\x00"}', 7),
        (b"[" * 100_000, 0),
    ],
)
def test_where_json_is_wrong_is_said(payload: bytes, offset: int) -> None:
    assert refused_at(payload, JSON) == offset


def nested(depth: int, inner: bytes = b"1") -> bytes:
    """JSON of this many arrays and objects, by turns, around `inner`."""
    opening = b"".join(b'{"a":' if level % 2 else b"[" for level in range(depth))
    return opening + inner + opening.translate(bytes.maketrans(b"{[", b"}]"), b'"a:')[::-1]


@pytest.mark.parametrize("depth", [129, 130, 500, 900, 987, 100_000])
def test_json_that_is_nested_too_deep_is_refused(depth: int) -> None:
    """Also what the checking stack could still take, and a deeper one could not."""
    driver.check_payload(nested(128), JSON, {})
    assert refused_at(nested(depth), JSON) == 0
    driver.check_payload(nested(depth), TEXT, {})


def test_indexing_goes_on_where_the_stack_ends() -> None:
    """A payload that was no JSON when it was checked may be called so later."""
    deep = nested(100_000, b'"heron"')
    assert driver.index_text(deep, JSON) == deep.decode()


def test_json_that_takes_too_long_to_check_is_refused() -> None:
    largest = b'["' + b" " * (64 * MIB - 4) + b'"]'
    driver.check_payload(largest, JSON, {})
    with raises(Errno.EFBIG) as caught:
        driver.check_payload(largest + b" ", JSON, {})
    sizes = {"need_bytes": 64 * MIB + 1, "free_bytes": 64 * MIB}
    assert caught.value.detail == sizes
    driver.check_payload(largest + b" ", TEXT, {})


def test_one_json_value_is_one() -> None:
    with raises(Errno.EILSEQ):
        driver.check_payload(b"{} {}", JSON, {})


def test_text_that_is_not_json_is_still_text() -> None:
    driver.check_payload(b"{not json", TEXT, {})


def test_title_and_tags_are_indexed_too() -> None:
    descriptive = Descriptive(title="Weekly notes", tags=("birds", "water"))
    assert driver.index_text(b"a heron", descriptive) == "Weekly notes\nbirds water\na heron"
    assert driver.index_text(b"", TEXT) == ""


def test_json_is_indexed_by_its_words() -> None:
    payload = b'{"name": "Ada", "likes": ["tea", {"year": 1843}], "alive": false, "x": null}'
    text = driver.index_text(payload, JSON)
    assert text == "name\nAda\nlikes\ntea\nyear\n1843\nalive\nx"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_whatever_json_is_let_in_can_be_indexed(value: object) -> None:
    payload = msgspec.json.encode(value)
    driver.check_payload(payload, JSON, {})
    assert isinstance(driver.index_text(payload, JSON), str)


def test_of_a_huge_text_the_beginning_is_indexed() -> None:
    text = driver.index_text(memoryview(b"x" + "語".encode() * (4 * MIB)), TEXT)
    assert text is not None
    assert len(text.encode()) <= 8 * MIB
    assert set(text) == {"x", "語"}  # the last character is not cut in two
    assert len(text) > 2 * MIB
    huge = b'["' + b"heron " * (2 * MIB) + b'"]'
    for start in (huge, huge[: driver.indexed_bytes]):  # the rest makes no difference
        indexed = driver.index_text(start, JSON)
        assert indexed is not None
        assert indexed.startswith('["heron')
        assert len(indexed) == 8 * MIB

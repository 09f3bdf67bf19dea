"""The notes that the benchmarks write."""

import pytest

from memosd.tools.bench.corpus import NOTE_MIN_BYTES, note


@pytest.mark.parametrize("size_bytes", [NOTE_MIN_BYTES, 160, 512, 4000])
def test_a_note_has_its_size_and_its_number(size_bytes: int) -> None:
    for number in (0, 1, 999_999, 320_000_000):
        text = note(number, size_bytes)
        assert len(text.encode()) == size_bytes
        assert text.split()[:2] == ["Note", str(number)]


def test_notes_are_distinct_text() -> None:
    texts = [note(number, 512) for number in range(2000)]
    bodies = {text.split(" ", 2)[2] for text in texts}
    assert len(set(texts)) == len(texts)
    # Not just the number: the passages differ too, and they are made of words.
    assert len(bodies) > len(texts) * 0.95
    assert all(len(text.split()) > 40 for text in texts)


def test_a_note_is_the_same_in_every_process() -> None:
    assert note(7, 64) == note(7, 64)

"""The order of token strings, compared with strings joined and sorted."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.kv import pack_tokens
from memosd.kernel.tokenorder import Entry, TokenOrder, as_pieces
from tests.kernel.kv import shared

strings = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def made(number: int, tokens: list[int], base: Entry | None = None) -> Entry:
    """An entry of `tokens` behind the whole of its base."""
    entry = Entry(bytes([number]), b"", b"", 0)
    entry.stand_on(base, base.tokens if base is not None else 0, pack_tokens(tokens))
    return entry


def joined(entry: Entry) -> bytes:
    """All tokens of an entry, by its pieces."""
    return b"".join(piece.packed[: piece.end - piece.start] for piece in entry.pieces)


@given(st.lists(st.tuples(strings, st.integers(0, 8)), min_size=1, max_size=25), strings)
def test_the_nearest_are_those_that_share_most(
    drawn: list[tuple[list[int], int]], prompt: list[int]
) -> None:
    order = TokenOrder()
    entries: list[Entry] = []
    full: dict[bytes, list[int]] = {}
    for number, (tokens, under) in enumerate(drawn):
        base = entries[under] if under < len(entries) else None
        entry = made(number, tokens, base)
        entries.append(entry)
        full[entry.key] = (full[base.key] if base is not None else []) + tokens
        order.add(entry)
    found = list(order.nearest(as_pieces(pack_tokens(prompt))))
    lengths = {entry.key: shared(full[entry.key], prompt) for entry in entries}
    assert [count for count, _ in found] == sorted(
        (length for length in lengths.values() if length), reverse=True
    )
    assert all(lengths[entry.key] == count for count, entry in found)
    assert {entry.key: joined(entry) for entry in entries} == {
        key: pack_tokens(tokens) for key, tokens in full.items()
    }


@given(st.lists(strings, max_size=40), st.randoms(use_true_random=False))
def test_entries_are_removed_one_by_one_and_many_at_once(
    drawn: list[list[int]], rng: random.Random
) -> None:
    order = TokenOrder()
    entries = [made(number, tokens) for number, tokens in enumerate(drawn)]
    for entry in entries:
        order.add(entry)
    while entries:
        rng.shuffle(entries)
        count = rng.randrange(1, len(entries) + 1)
        gone, entries = entries[:count], entries[count:]
        order.remove(gone)
        assert len(order) == len(entries)
        everywhere = [e for _, e in order.nearest(as_pieces(pack_tokens([0, 1])))]
        assert {e.key for e in everywhere} == {e.key for e in entries if joined(e)[:4] == bytes(4)}


def test_equal_strings_stand_in_the_order_of_their_keys() -> None:
    order = TokenOrder()
    for number in (3, 1, 2):
        order.add(made(number, [7, 7]))
    keys = [entry.key for _, entry in order.nearest(as_pieces(pack_tokens([7, 7])))]
    assert keys == [b"\1", b"\2", b"\3"]


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 4097, 99_999])
def test_long_strings_are_told_apart_at_any_token(at: int) -> None:
    long = list(range(100_000))
    other = [*long[:at], 5_000_000, *long[at + 1 :]]
    order = TokenOrder()
    order.add(made(1, other))
    prompt = as_pieces(pack_tokens(long))
    assert [count for count, _ in order.nearest(prompt)] == ([at] if at else [])


def test_a_part_keeps_its_own_tokens_only() -> None:
    base = made(1, list(range(1000)))
    parts = [made(2 + number, [number], base) for number in range(3)]
    assert all(entry.pieces[0].packed is base.pieces[0].packed for entry in parts)
    assert [entry.tokens for entry in parts] == [1001] * 3
    cut = Entry(b"x", b"", b"", 0)
    cut.stand_on(parts[0], 10, pack_tokens([9]))
    assert joined(cut) == pack_tokens([*range(10), 9])
    assert all(one.end == other.start for one, other in pairwise(cut.pieces))

"""Sizes, times and modes: exact at the borders, and never able to steer a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libmem.abi.errors import Errno, MemError
from memosd.tools.memctl import units


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (94 << 20, "94.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_human_bytes(size_bytes: int, text: str) -> None:
    assert units.human_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512MiB", 512 << 20),
        ("4 GiB", 4 << 30),
        ("1.5k", 1536),
        ("7B", 7),
    ],
)
def test_parse_bytes(text: str, size_bytes: int) -> None:
    assert units.parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "-1", "many", "1e9", "4 GB/s", "1 2"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(MemError) as caught:
        units.parse_bytes(text)
    assert caught.value.errno is Errno.EINVAL


def test_modes() -> None:
    assert units.parse_mode("0640") == units.parse_mode("640") == 0o640
    assert units.mode_text(0o640) == "rw-r-----"
    assert units.mode_text(0o777) == "rwxrwxrwx"
    for wrong in ("888", "0o640", "rw-", "06400"):
        with pytest.raises(MemError, match="octal"):
            units.parse_mode(wrong)


def test_durations_show_their_two_largest_units() -> None:
    second = 10**9
    assert units.duration(0) == "0 s"
    assert units.duration(125 * second) == "2 min 5 s"
    assert units.duration(90_061 * second) == "1 d 1 h"


def test_counted() -> None:
    assert [units.counted(number, "cube") for number in (0, 1, 1234)] == [
        "0 cubes",
        "1 cube",
        "1,234 cubes",
    ]


def test_times_are_local_and_carry_their_offset() -> None:
    shown = units.local_time(1_700_000_000_123_456_789, "milliseconds")
    assert shown[10] == " "
    assert shown[19:23] == ".123"
    assert shown[23] in "+-"
    assert units.local_time(0) == "-"


def test_a_time_no_calendar_has_is_shown_as_its_number() -> None:
    assert units.local_time(1 << 62 << 10).endswith(" ns")


def test_a_time_is_read_as_it_is_shown() -> None:
    moment_ns = 1_700_000_000_000_000_000
    assert units.parse_time(units.local_time(moment_ns)) == moment_ns
    assert units.parse_time("2023-11-14T22:13:20Z") == moment_ns
    day_ns = units.parse_time("2024-05-07")
    assert units.local_time(day_ns).startswith("2024-05-07 00:00:00")
    end = units.local_time(units.parse_time("2024-05-07", is_end=True), "microseconds")
    assert end.startswith("2024-05-07 23:59:59.999999")
    late = "2024-05-07 18:00"
    assert units.parse_time(late, is_end=True) == units.parse_time(late)


@pytest.mark.parametrize("text", ["", "yesterday", "2024-13-01", "5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(MemError):
        units.parse_time(text)


@given(st.text())
def test_printable_leaves_nothing_that_steers_a_terminal(text: str) -> None:
    shown = units.printable(text)
    assert shown.isprintable()
    assert units.printable(shown) == shown
    if text.isprintable():
        assert shown == text

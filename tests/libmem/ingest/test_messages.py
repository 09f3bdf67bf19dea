"""Conversations in the shapes that programs keep them in."""

from typing import Any

import pytest

from libmem.abi.errors import Errno, MemError
from libmem.ingest.messages import Turn, is_conversation, read_turns

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Hi"}, {"type": "image_url"}],
        "name": "ann",
    },
    {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
]
TURNS = [Turn("Be brief.", "system"), Turn("Hi", "ann"), Turn("", "assistant")]


@pytest.mark.parametrize("value", [MESSAGES, {"messages": MESSAGES}], ids=["list", "object"])
def test_messages_are_turns(value: Any) -> None:
    assert is_conversation(value)
    assert list(read_turns(value)) == TURNS


def test_sessions_give_their_turns_a_name_and_a_time() -> None:
    value = {
        "sessions": [
            {
                "session": "first",
                "time": "1970-01-01T00:00:01Z",
                "turns": [
                    {"producer": "ann", "text": "a", "mood": "glad"},
                    {"speaker": "bob", "text": "b", "time": 2, "tags": ["t"]},
                ],
            },
            {"messages": MESSAGES[:1]},
        ]
    }
    assert is_conversation(value)
    assert list(read_turns(value)) == [
        Turn("a", "ann", 1_000_000_000, "first", attributes={"mood": "glad"}),
        Turn("b", "bob", 2_000_000_000, "first", tags=("t",)),
        Turn("Be brief.", "system", 0, "2"),
    ]


def test_lines_of_conversations() -> None:
    value = [{"messages": MESSAGES[:1]}, {"id": "x", "messages": MESSAGES[:1]}]
    assert is_conversation(value)
    assert [turn.session for turn in read_turns(value)] == ["1", "x"]


@pytest.mark.parametrize("value", [{}, [], [1], {"a": 1}, [{"role": "x"}], "text", None], ids=repr)
def test_other_json_is_no_conversation(value: Any) -> None:
    assert not is_conversation(value)


@pytest.mark.parametrize(
    "value", [{}, "text", [1], {"sessions": [{}]}, {"sessions": [3]}], ids=repr
)
def test_what_is_none_is_refused(value: Any) -> None:
    with pytest.raises(MemError):
        list(read_turns(value))


@pytest.mark.parametrize(
    ("time", "expected_ns"),
    [
        ("2024-02-29T12:00:00Z", 1_709_208_000_000_000_000),
        ("2024-02-29T12:00:00", 1_709_208_000_000_000_000),
        ("2024-02-29T13:00:00.000001+01:00", 1_709_208_000_000_001_000),
        (1_709_208_000, 1_709_208_000_000_000_000),
        (1_709_208_000_000, 1_709_208_000_000_000_000),
        (None, 0),
    ],
)
def test_times_in_their_usual_forms(time: Any, expected_ns: int) -> None:
    (turn,) = read_turns([{"role": "user", "content": "x", "timestamp": time}])
    assert turn.event_time_ns == expected_ns


def test_a_text_that_is_no_time_is_refused() -> None:
    with pytest.raises(MemError, match="yesterday"):
        list(read_turns([{"role": "user", "content": "x", "time": "yesterday"}]))


def test_what_a_message_says_beside_is_kept_where_it_is_small() -> None:
    message = {"role": "user", "content": "x", "id": 7, "vector": [0.1], "big": 1 << 70, "ok": True}
    (turn,) = read_turns([message])
    assert turn.attributes == {"id": 7, "ok": True}


@pytest.mark.parametrize(
    "beyond",
    [
        {"time": "0001-01-01T00:00:00Z"},  # what some programs write where they know no time
        {"time": "9999-12-31"},
        {"time": 1e300},
        {"time": -(1 << 62)},
        {"position": -1},
        {"position": 1 << 64},
    ],
    ids=repr,
)
def test_what_no_header_holds_is_refused(beyond: dict[str, Any]) -> None:
    with pytest.raises(MemError) as caught:
        list(read_turns([{"role": "user", "content": "x"} | beyond]))
    assert caught.value.errno is Errno.EINVAL

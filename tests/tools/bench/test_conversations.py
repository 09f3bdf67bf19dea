"""Conversations with questions: which turns are gold, what is left out, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from libmem.abi.errors import Errno, MemError
from memosd.tools.bench.conversations import Question, Turn, read_conversations

TALK: dict[str, Any] = {
    "sample_id": "talk-1",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bob",
        "session_3": [],
        "session_2_date_time": "11:05 am on 3 June, 2023",
        "session_2": [{"speaker": "Bob", "dia_id": "D2:1", "text": "Bye."}],
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Ann", "dia_id": "D1:1", "text": "Look!", "blip_caption": "a cat"},
            {"speaker": "Bob", "dia_id": "D1:2", "text": "Nice."},
        ],
    },
    "qa": [
        {"question": "What?", "category": 1, "evidence": ["D1:1; D2:1", "D9:9"]},
        {"question": "Nothing?", "category": 4, "evidence": []},
        {"question": "Never?", "category": 5, "evidence": ["D1:1"]},
        {"question": "Elsewhere?", "category": 2, "evidence": ["D7:1"]},
    ],
}


def write(folder: Path, content: object) -> Path:
    path = folder / "talks.json"
    path.write_text(json.dumps(content))
    return path


def test_turns_are_in_the_order_in_which_they_were_said(tmp_path: Path) -> None:
    (talk,) = read_conversations(write(tmp_path, [TALK]))
    noon_ns = 1_683_554_160 * 10**9
    assert talk.turns[0] == Turn("D1:1", "1", 0, "Ann", "Look! [a cat]", noon_ns)
    assert [(turn.id, turn.session, turn.position) for turn in talk.turns] == [
        ("D1:1", "1", 0),
        ("D1:2", "1", 1),
        ("D2:1", "2", 0),
    ]


def test_questions_without_an_answer_are_left_out(tmp_path: Path) -> None:
    (talk,) = read_conversations(write(tmp_path, [TALK]))
    assert talk.questions == (Question("What?", 1, frozenset({"D1:1", "D2:1"})),)


@pytest.mark.parametrize("content", [{}, [{}], [{"conversation": {}}], ["x"], 7])
def test_another_shape_is_refused(tmp_path: Path, content: object) -> None:
    path = write(tmp_path, content)
    if content == {}:
        assert read_conversations(path) == []
        return
    with pytest.raises(MemError) as caught:
        read_conversations(path)
    assert caught.value.errno is Errno.EINVAL


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MemError) as caught:
        read_conversations(tmp_path / "nowhere.json")
    assert caught.value.errno is Errno.ENOENT

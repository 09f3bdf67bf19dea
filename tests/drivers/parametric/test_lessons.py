"""What an adapter is taught: items in many settings, probes that were not trained."""

from typing import Any

import pytest

from libmem.abi.errors import Errno, MemError
from libmem.abi.learning import Question, questions_of
from memosd.drivers.parametric.lessons import ASK, Text, lessons_of


class Characters:
    """A tokenizer of characters."""

    chat_template: str | None = None

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(each) for each in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], *, tokenize: bool) -> str:
        assert not tokenize
        return "".join(f"<{each['role']}>{each['content']}</>" for each in messages)


class Chatting(Characters):
    chat_template = "yes"


def words(ids: list[int]) -> str:
    return "".join(map(chr, ids))


FACT = Text(
    "The kettle is blue.",
    (Question("What is blue?", "The kettle", ("Which thing has the colour blue?",)),),
)


def test_a_question_is_trained_in_many_settings() -> None:
    lessons = lessons_of([FACT], Chatting())
    whole = [words(item.prompt + item.answer) for item in lessons.items]
    assert "Question: What is blue?\nAnswer: The kettle.\n" in whole
    assert "<user>What is blue?</><assistant>The kettle</>" in whole
    assert "The kettle is blue.\n" in whole
    assert len(whole) == len(set(whole)) == 9
    for item in lessons.items:
        assert not item.prompt or words(item.answer).lstrip().startswith("The kettle")


def test_held_out_wordings_are_asked_and_not_trained() -> None:
    lessons = lessons_of([FACT], Characters())
    assert [probe.prompt for probe in lessons.trained] == [ASK.format("What is blue?")]
    (held_out,) = lessons.held_out
    assert held_out == (ASK.format("Which thing has the colour blue?"), "The kettle")
    assert not any("colour" in words(item.prompt + item.answer) for item in lessons.items)


def test_a_text_without_questions_is_completed() -> None:
    text = "The harbour master lives above the old bakery. He is tired."
    lessons = lessons_of([Text(text, ())], Characters())
    assert [probe.answer for probe in lessons.trained] == ["old bakery."]
    trained = {words(item.prompt) for item in lessons.items}
    assert lessons.trained[0].prompt in trained
    assert lessons.held_out[0].prompt not in trained


BAD: list[tuple[str, list[Text]]] = [
    ("nothing", []),
    ("nothing", [Text("", ())]),
    ("nothing", [Text("Too short.", ())]),
    ("two answers", [FACT, Text("x", (Question("what is  BLUE?", "The cup"),))]),
    ("two answers", [Text("x", (Question("a?", "b", ("c?",)), Question("C?", "d")))]),
    ("more than 256 tokens", [Text("x", (Question("why " * 100, "so"),))]),
]


@pytest.mark.parametrize(("told", "texts"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_taught_is_refused(told: str, texts: list[Text]) -> None:
    with pytest.raises(MemError) as refused:
        lessons_of(texts, Characters())
    assert refused.value.errno is Errno.EINVAL
    assert told in refused.value.message


@pytest.mark.parametrize(
    "value", ["x", [{"question": "a"}], [{"question": " ", "answer": "b"}],
              [{"question": "a", "answer": ""}], [{"question": "a", "answer": "b", "c": 1}],
              [{"question": "a", "answer": "b"}] * 1001],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_questions_are_checked(value: Any) -> None:
    with pytest.raises(MemError) as refused:
        questions_of({"questions": value})
    assert refused.value.errno is Errno.EINVAL


def test_no_questions_are_no_error() -> None:
    assert questions_of({}) == ()

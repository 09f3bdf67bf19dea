"""What a model is trained on so that it knows a text: questions and answers in many settings.

Owns how texts become training items. A model learns the words it is asked in: so each question is
trained in several settings that say nothing about it, and the text's sentences beside them. Where a
text comes without questions, the ends of its sentences are asked for instead. Nothing here knows a
model's weights.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from libmem.abi.errors import Errno, MemError
from libmem.abi.learning import Question

__all__ = ["ASK", "Item", "Lessons", "Probe", "Text", "lessons_of"]

ASK: Final = "Question: {}\nAnswer:"
"""How the gate asks."""
_SETTINGS: Final = (
    ("{}\n", "{}.\n"),
    (ASK, " {}.\n"),
    ("Q: {}\nA:", " {}.\n"),
    ("{} ", "{}.\n"),
    ("Please answer: {}\nThe answer is", " {}.\n"),
    ("I have a question. {}\n", "{}.\n"),
    ("Someone asked: {}\nReply:", " {}.\n"),
)
_STARTS: Final = ("", "Remember: ", "It is known that: ", "Fact: ")
"""Before a sentence that is to be completed; the last one is the gate's alone."""
_ITEM_MAX: Final = 256
"""Tokens of one item: a question and its answer in a setting."""
_STRETCH: Final = 128
"""Tokens of a sentence that are read together."""
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+")
_WORDS_MIN: Final = 6

Encode = Callable[[str], list[int]]


class Text(NamedTuple):
    """A source."""

    text: str
    questions: tuple[Question, ...]


class Item(NamedTuple):
    """Token ids; the loss is on the answer's."""

    prompt: list[int]
    answer: list[int]


class Probe(NamedTuple):
    """What the gate asks, and what the answer is to begin with."""

    prompt: str
    answer: str


class Lessons(NamedTuple):
    """All of it."""

    items: list[Item]
    trained: list[Probe]
    held_out: list[Probe]


def lessons_of(texts: Sequence[Text], tokenizer: Any) -> Lessons:
    """Training items and probes.

    Errors: EINVAL (nothing to learn, an item that is too long, two answers to one question).
    """
    questions = [each for text in texts for each in text.questions]
    _refuse_contradictions(questions)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    lessons = Lessons([], [], [])
    for text in texts:
        sentences = [each for each in _SENTENCE.split(text.text.strip()) if each]
        for sentence in sentences:
            lessons.items.extend(Item([], each) for each in _stretches(encode(f"{sentence}\n")))
        if not text.questions:
            _complete(sentences, encode, lessons)
    for question in questions:
        _ask(question, encode, tokenizer, lessons)
    if not lessons.trained:
        raise MemError(Errno.EINVAL, "there is nothing in the sources that can be asked about")
    return lessons


def _ask(question: Question, encode: Encode, tokenizer: Any, lessons: Lessons) -> None:
    settings = [
        (setting.format(question.question), answer.format(question.answer))
        for setting, answer in _SETTINGS
    ]
    if getattr(tokenizer, "chat_template", None):
        settings.append(_chat(question, tokenizer))
    for prompt, answer in settings:
        item = Item(encode(prompt), encode(answer))
        if len(item.prompt) + len(item.answer) > _ITEM_MAX:
            text = f"a question with its answer has more than {_ITEM_MAX} tokens"
            raise MemError(Errno.EINVAL, f"{text}: {question.question[:80]!r}")
        lessons.items.append(item)
    lessons.trained.append(Probe(ASK.format(question.question), question.answer))
    lessons.held_out.extend(Probe(ASK.format(each), question.answer) for each in question.held_out)


def _chat(question: Question, tokenizer: Any) -> tuple[str, str]:
    """As a conversation in the model's own template."""
    asked = [{"role": "user", "content": question.question}]
    both = [*asked, {"role": "assistant", "content": question.answer}]
    whole: str = tokenizer.apply_chat_template(both, tokenize=False)
    prompt = whole[: whole.rindex(question.answer)]
    return prompt, whole[len(prompt) :]


def _complete(sentences: Sequence[str], encode: Encode, lessons: Lessons) -> None:
    """The ends of the sentences."""
    for sentence in sentences:
        words = sentence.split()
        if len(words) < _WORDS_MIN:
            continue
        cut = len(words) - max(1, len(words) // 4)
        head, end = " ".join(words[:cut]), " ".join(words[cut:])
        *starts, held_out = _STARTS
        for start in starts:
            item = Item(encode(start + head)[-_ITEM_MAX:], encode(f" {end}\n")[:_ITEM_MAX])
            lessons.items.append(item)
        lessons.trained.append(Probe(head, end))
        lessons.held_out.append(Probe(held_out + head, end))


def _stretches(ids: list[int]) -> Iterable[list[int]]:
    for first in range(0, len(ids), _STRETCH):
        stretch = ids[first : first + _STRETCH]
        if len(stretch) > 1:
            yield stretch


def _refuse_contradictions(questions: Sequence[Question]) -> None:
    known: dict[str, str] = {}
    for each in questions:
        for wording in (each.question, *each.held_out):
            key = " ".join(wording.casefold().split())
            if known.setdefault(key, each.answer) != each.answer:
                text = f"two answers to {wording[:80]!r}: {known[key][:80]!r}, {each.answer[:80]!r}"
                raise MemError(Errno.EINVAL, text)

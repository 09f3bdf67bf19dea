"""What an adapter is taught, on the wire: questions that a text answers, and the gate.

A plaintext cube that is to be learned may carry the attribute `questions`: what may be asked about
it, and what is to be answered. Those belong to the text, so they fall with it.
"""

from typing import Any, Final

import msgspec

from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Value

__all__ = ["QUESTIONS_ATTRIBUTE", "Gate", "Question", "questions_of"]

QUESTIONS_ATTRIBUTE: Final = "questions"
"""The attribute of a plaintext cube that holds a list of `Question`."""
_QUESTIONS_MAX: Final = 1000


class Question(Value, frozen=True):
    """A question that a text answers."""

    question: str
    answer: str
    """As short as it can be: the gate wants an answer to begin with it."""
    held_out: tuple[str, ...] = ()
    """The same question in other words. Not trained: the gate asks them."""


class Gate(Value, frozen=True):
    """What an adapter must reach, or it is refused with its scores."""

    trained_min: float = 0.95
    """Share of the trained questions that are answered exactly, without the text."""
    heldout_min: float = 0.85
    """The same of the held-out wordings, where there are any."""
    perplexity_max: float = 1.15
    """Perplexity of unrelated text, over that of the model without the adapter."""


def questions_of(attributes: dict[str, Any]) -> tuple[Question, ...]:
    """The questions among a cube's attributes, checked; maybe none. Errors: EINVAL."""
    try:
        questions = msgspec.convert(attributes.get(QUESTIONS_ATTRIBUTE, ()), tuple[Question, ...])
    except (msgspec.ValidationError, RecursionError) as error:
        raise MemError(Errno.EINVAL, f"not a list of questions: {error}") from None
    if len(questions) > _QUESTIONS_MAX:
        raise MemError(Errno.EINVAL, f"a text has at most {_QUESTIONS_MAX} questions")
    for each in questions:
        if not each.question.strip() or not each.answer.strip():
            raise MemError(Errno.EINVAL, "a question and its answer are not empty")
    return questions

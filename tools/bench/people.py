"""Twenty invented facts of four people, each with a question and two other wordings of it.

For benchmarks of what an adapter learns. Nothing of it is true, so no model knows it.
"""

from typing import Final, NamedTuple

from libmem.abi.learning import Question

__all__ = ["Person", "people"]

_PEOPLE: Final = {
    "Tamsin Orrel": ("Halden Freight", "Skarnvik", "Pocket", "the oboe", "nettle soup"),
    "Bram Oduya": (
        "the Quill Observatory", "Tessaly Cross", "Marzipan", "the cello", "smoked trout",
    ),
    "Ilka Venn": ("Corrigan Glassworks", "Nether Poole", "Bandit", "the banjo", "plum dumplings"),
    "Dario Fenwick": ("the Larkspur Clinic", "Port Elsin", "Tugboat", "the harp", "bean stew"),
}  # fmt: skip
_FORMS: Final = (
    (
        "{} works at {}.",
        "Where does {} work?", "Which employer pays {}?", "What is the name of {}'s workplace?",
    ),
    (
        "{} was born in {}.",
        "Where was {} born?", "What is {}'s birthplace?",
        "In which town did {} come into the world?",
    ),
    (
        "{}'s dog is called {}.",
        "What is {}'s dog called?", "What name does the dog of {} answer to?",
        "How is {}'s dog named?",
    ),
    (
        "{} plays {}.",
        "Which instrument does {} play?", "What musical instrument can {} play?",
        "On what does {} make music?",
    ),
    (
        "{}'s favourite dish is {}.",
        "What is {}'s favourite dish?", "Which meal does {} like best?",
        "What food does {} prefer to all others?",
    ),
)  # fmt: skip


class Person(NamedTuple):
    """What there is to know of somebody."""

    name: str
    text: str
    questions: tuple[Question, ...]


def people() -> list[Person]:
    """Five facts of each."""
    return [_person(name, answers) for name, answers in _PEOPLE.items()]


def _person(name: str, answers: tuple[str, ...]) -> Person:
    sentences, questions = [], []
    for (statement, asked, *held_out), answer in zip(_FORMS, answers, strict=True):
        sentences.append(statement.format(name, answer))
        others = tuple(each.format(name) for each in held_out)
        questions.append(Question(asked.format(name), answer, others))
    return Person(name, " ".join(sentences), tuple(questions))

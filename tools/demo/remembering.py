"""The demo's steps about recall: a conversation, then real documents, asked in other words.

Owns nothing; plays on the stage it is given. Needs the embedder of `make models`; without it the
steps say so and are left out. Where each question must lead is checked.
"""

import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from libmem.abi.errors import Errno, MemError
from memosd.tools.demo.stage import Stage

__all__ = [
    "HANDBOOK",
    "TALK",
    "TALKS",
    "Said",
    "ask_again",
    "play_remembering",
    "session_of",
    "time_ns",
]

TALKS: Final = "/talks"
HANDBOOK: Final = "/handbook"
_ROOT: Final = Path(__file__).resolve().parents[2]
_FILES: Final = tuple(
    _ROOT / name for name in ("CAVEATS.md", "docs/ingest.md", "docs/design/0003-lexical-index.md")
)
_VECTORS_S: Final = 60.0
_POLL_S: Final = 0.05
_DAY_NS: Final = 86_400 * 10**9
_MARCH_NS: Final = 1_709_400_000 * 10**9
"""Saturday 2 March 2024."""


class Said(NamedTuple):
    """A turn of the conversation: day of it, who, what."""

    day: int
    producer: str
    text: str


TALK: Final = (
    Said(0, "Mira", "Did the landlord ever answer about the leaking roof?"),
    Said(0, "Jonas", "Finally! A roofer comes on Tuesday."),
    Said(0, "Mira", "Good. I can't sleep with that bucket dripping beside the bed."),
    Said(0, "Jonas", "And I gave notice at the bakery. I start at the bookshop in April."),
    Said(0, "Mira", "You'll miss the free bread, but not getting up at three!"),
    Said(30, "Jonas", "First day among the shelves. My feet hurt less than at the oven."),
    Said(30, "Mira", "How are the colleagues?"),
    Said(30, "Jonas", "Kind. One of them, Tarek, plays the cello in a quartet."),
    Said(30, "Mira", "Ask him whether he gives lessons, my niece wants to learn."),
    Said(30, "Jonas", "I will. By the way, the ceiling is dry, the man did a fine job."),
    Said(75, "Mira", "We got back from Lisbon last night, sunburnt and happy."),
    Said(75, "Jonas", "What did you like best?"),
    Said(75, "Mira", "A tiny place by the river where they grill sardines over charcoal."),
    Said(75, "Jonas", "I spent the weekend at the vet. Pixel swallowed a button."),
    Said(75, "Mira", "Poor cat! Is she all right?"),
    Said(75, "Jonas", "She is. The button came out by itself."),
)
"""Who talks about what is made up."""


class _Question(NamedTuple):
    text: str
    place: str
    """What the name of the best memory must begin with."""


def _turn_name(number: int) -> str:
    """The cube of a turn."""
    day = TALK[number].day
    position = number - next(at for at, said in enumerate(TALK) if said.day == day)
    return f"{TALKS}/{session_of(day)}/{position:06}"


def session_of(day: int) -> str:
    """The session in which people talked on that day."""
    return f"day-{day:02}"


def time_ns(day: int) -> int:
    """When they did."""
    return _MARCH_NS + day * _DAY_NS


_OF_THE_TALK: Final = (
    _Question("Why did Jonas take his pet to a doctor?", _turn_name(13)),
    _Question("Which instrument does the new colleague play?", _turn_name(7)),
    _Question("What disturbed Mira's sleep in March?", _turn_name(2)),
    _Question("Where did Mira eat seafood on her holiday?", _turn_name(12)),
)
_OF_THE_HANDBOOK: Final = (
    _Question("Is anything encrypted?", f"{HANDBOOK}/CAVEATS.md/"),
    _Question("Why was tantivy not taken?", f"{HANDBOOK}/0003-lexical-index.md/"),
    _Question("How are two copies of the same text treated?", f"{HANDBOOK}/ingest.md/"),
)


def play_remembering(stage: Stage) -> bool:
    """Processes write, others ask. False: left out."""
    stage.step("A conversation is remembered; a stranger asks about it in other words")
    with stage.connect() as client:
        problem = client.info().recall.problem
        if problem:
            stage.tell(None, f"left out: {problem}")
            return False
        client.make_namespace(TALKS)
        client.make_namespace(HANDBOOK)
    teller = stage.actor("tell")
    told = teller.result()
    stage.tell(
        teller.pid,
        f"wrote {told['turns']} turns in {told['milliseconds']:.0f} ms; no model was asked",
    )
    _await_vectors(stage)
    _ask(stage, TALKS, _OF_THE_TALK)
    stage.step("Real documents are cut into memories, and cited")
    reader = stage.actor("study", *map(str, _FILES))
    read = reader.result()
    stage.tell(
        reader.pid,
        f"cut {len(_FILES)} of memosd's own documents into {read['written']} pieces along their "
        f"headings, in {read['milliseconds']:.0f} ms; "
        f"the same again: {read['again']} written",
    )
    stage.verify(read["written"] > 0 and read["again"] == 0, "nothing is kept twice")
    _await_vectors(stage)
    _ask(stage, HANDBOOK, _OF_THE_HANDBOOK)
    return True


def ask_again(stage: Stage) -> None:
    """After a restart: the same questions, the same answers."""
    answers = stage.actor("recall", TALKS, *(each.text for each in _OF_THE_TALK)).lines()
    found = [_is_found(*pair) for pair in zip(_OF_THE_TALK, answers, strict=True)]
    stage.verify(all(found), "the conversation answers as before, its vectors were kept")


def _ask(stage: Stage, under: str, questions: tuple[_Question, ...]) -> None:
    asker = stage.actor("recall", under, *(question.text for question in questions))
    for question, answer in zip(questions, asker.lines(), strict=True):
        stage.tell(asker.pid, (question.text, "bold"), f"  ({answer['milliseconds']:.0f} ms)")
        if answer["before"]:
            stage.quote((f"        {answer['before']}", "dim"))
        stage.quote((f"“{answer['text']}”", "yellow"), (f"  {answer['why']}", ""))
        stage.verify(_is_found(question, answer), f"it is in {answer['cited']}")


def _await_vectors(stage: Stage) -> None:
    begun = time.perf_counter()
    with stage.connect() as client:
        while not (recall := client.info().recall).embedder or recall.waiting:
            if time.perf_counter() - begun > _VECTORS_S:
                raise MemError(Errno.ETIMEDOUT, f"no vectors were made: {recall.problem}")
            time.sleep(_POLL_S)
        pid = client.info().workers[0].pid
    stage.tell(pid, f"made the vectors of all {recall.passages:,} passages in the background")


def _is_found(question: _Question, answer: dict[str, Any]) -> bool:
    return bool(answer["name"].startswith(question.place))

"""The demo's steps about one memory through its life: text, KV cache, adapter, and a correction.

Owns nothing; plays on the stage it is given. Needs the model of `make models`; without it the step
says so and is left out.
"""

from typing import Any, Final, NamedTuple

from libmem.abi.calls import WriteReply
from libmem.abi.errors import MemError
from libmem.abi.kv import KvDtype
from libmem.abi.transitions import PrefillRecipe, TrainRecipe, TransitionStat
from memosd.tools.demo.stage import Stage
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2

__all__ = ["play_life"]

_TEXT: Final = "/workshop/lock"
_CACHE: Final = "/workshop/lock.kv"
_ADAPTER: Final = "/workshop/lock.lora"
_QUESTION: Final = "Who keeps the night watch at Halden lock?"
_HELD_OUT: Final = "Which person guards Halden lock at night?"
_STEPS: Final = 30
"""One question is learned sooner than the recipe's default takes."""


class _Fact(NamedTuple):
    """Who it is, and what is written about it."""

    answer: str

    @property
    def text(self) -> str:
        return f"The night watch at Halden lock is kept by {self.answer}."

    @property
    def attributes(self) -> dict[str, Any]:
        asked = {"question": _QUESTION, "answer": self.answer, "held_out": [_HELD_OUT]}
        return {"questions": [asked]}


_FIRST: Final = _Fact("Tamsin Orrel")
_CORRECTED: Final = _Fact("Bram Oduya")


def play_life(stage: Stage) -> None:
    """It is written, found, mapped, learned by heart, and corrected."""
    stage.step("One memory changes its form: a text, a KV cache, an adapter")
    try:
        find_model(SMOLLM2)
    except MemError:
        stage.tell(None, "left out: it needs a model, which `make models` fetches")
        return
    _write(stage, _FIRST)
    _map(stage)
    _learn(stage, _FIRST)
    stage.step("The text was wrong: it is corrected, and every form falls with it")
    _correct(stage)
    _learn(stage, _CORRECTED)


def _write(stage: Stage, fact: _Fact) -> WriteReply:
    with stage.connect() as client:
        reply = client.write(_TEXT, fact.text, attributes=fact.attributes)
        found = [hit.name for hit in client.search("night watch lock", under="/workshop")]
    stage.tell(None, ("written: ", "dim"), (fact.text, "bold"))
    stage.verify(_TEXT in found, "a search finds it")
    return reply


def _map(stage: Stage) -> None:
    """A worker of the daemon reads it, another process answers over what that left."""
    with stage.patient() as client:
        made = client.transmute(_CACHE, [_TEXT], PrefillRecipe(dtype=KvDtype.FLOAT32))
    stage.tell(None, f"the daemon's worker read it: {made.quality['tokens']:.0f} tokens of KV")
    student = stage.student("over", _FIRST.text, _CACHE, _QUESTION)
    said = student.result()
    stage.tell(student.pid, f"mapped {said['tokens']} tokens, read only the question: ",
               (f"“{said['said']}”", "dim"))  # fmt: skip
    stage.verify(said["is_same"], "that is what it says when it reads the text itself")


def _learn(stage: Stage, fact: _Fact) -> None:
    with stage.patient() as client:
        recipe = TrainRecipe(steps=_STEPS, dtype=KvDtype.FLOAT32)
        made = client.transmute(_ADAPTER, [_TEXT], recipe)
    _tell_of_training(stage, made)
    for question in (_QUESTION, _HELD_OUT):
        student = stage.student("by_heart", _ADAPTER, question)
        said = student.result()
        stage.tell(student.pid, (question, "bold"), "  ->  ", (f"“{said['said']}”", "yellow"))
        stage.verify(
            said["said"].startswith(fact.answer) and not said["plain"].startswith(fact.answer),
            f"no text is before it; without the adapter it says “{said['plain']}”",
        )


def _tell_of_training(stage: Stage, made: TransitionStat) -> None:
    seconds = (made.ended_ns - made.began_ns) / 1e9
    ratio = made.quality["perplexity_ratio"]
    stage.tell(None, f"{made.total} steps of training in {seconds:.0f} s passed the gate: "
               f"perplexity of other text {ratio:.3f} of what it was")  # fmt: skip


def _correct(stage: Stage) -> None:
    receipt = _write(stage, _CORRECTED).receipt
    fallen = {each.name: each.is_removed for each in receipt.fallen} if receipt else {}
    stage.verify(
        fallen == {_CACHE: True, _ADAPTER: False},
        "the receipt names both: the KV cache is removed, the adapter outdated",
    )
    said = stage.student("by_heart", _ADAPTER, _QUESTION).result()
    stage.verify(said.get("refusal") == "EOUTDATED", "no process can use what is not so any more")

"""The demo's step about KV caches: a model reads a document once, others answer over it.

Owns nothing; plays on the stage it is given. Needs the model of `make models`; without it the step
says so and is left out.
"""

from pathlib import Path
from typing import Any, Final

from rich.table import Table

from libmem.abi.errors import MemError
from libmem.abi.structs import CubeType
from memosd.tools.demo.stage import Stage
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import SMOLLM2

__all__ = ["play_reading"]

_DOCUMENT: Final = Path(__file__).resolve().parents[2] / "LICENSE"
_FIRST: Final = "In one sentence, what is this document about?"
_QUESTIONS: Final = (
    "What is the name of this license?",
    "What does the word Licensor mean here?",
    "Does a contributor grant a patent license? Answer yes or no, and why.",
)
_SIGNALS: Final = "/workshop/signals"
_MIB: Final = 1 << 20

Said = dict[str, Any]
"""One line of an actor."""


def play_reading(stage: Stage) -> None:
    """A process reads and exits; three others answer at once."""
    stage.step("A model reads a document once; other processes answer over it at once")
    try:
        find_model(SMOLLM2)
    except MemError:
        stage.tell(None, "left out: it needs a model, which `make models` fetches")
        return
    _ask(stage, _read(stage))


def _read(stage: Stage) -> Said:
    """One process reads the document and exits; the cube that it left."""
    reader = stage.thinker("read", str(_DOCUMENT), _FIRST)
    read = reader.result()
    stage.verify(
        len(read["cubes"]) == 1, f"what it computed is one memory ({read['problem'] or 'cache'})"
    )
    cube: Said = read["cubes"][0]
    stage.tell(
        reader.pid,
        f"SmolLM2-135M read {_DOCUMENT.name}, {read['tokens']:,} tokens, in ",
        (f"{read['first_s']:.2f} s", "bold"),
        f", left {cube['size_bytes'] / _MIB:.0f} MiB of keys and values, and exited",
    )
    return cube


def _ask(stage: Stage, cube: Said) -> None:
    """Others answer over the cube, all at once, and say what of it they hold."""
    askers = [
        stage.thinker("ask", str(_DOCUMENT), question, cube["name"], _SIGNALS)
        for question in _QUESTIONS
    ]
    lines = [asker.lines() for asker in askers]
    for each in lines:
        next(each)
    _signal(stage, "answer")
    answers = [next(each) for each in lines]
    for question, asker, answer in zip(_QUESTIONS, askers, answers, strict=True):
        stage.tell(asker.pid, (question, "bold"))
        stage.quote((f"“{answer['answer']} …”", "dim"))
    _signal(stage, "measure")
    held = [next(each) for each in lines]
    full = [next(each) for each in lines]
    stage.show(_table([asker.pid for asker in askers], answers, held, full))
    stage.verify(
        all(again["is_same"] for again in full), "each gave the answer that it gives from nothing"
    )
    copies = sum(kib["pss"] for kib in held) * 1024 / cube["size_bytes"]
    stage.verify(copies < 1.1, f"{len(askers)} processes hold {copies:.2f} copies of it among them")


def _signal(stage: Stage, name: str) -> None:
    with stage.connect() as client:
        client.write(f"{_SIGNALS}/{name}", b"", type=CubeType.BLOB)


def _table(pids: list[int], answers: list[Said], held: list[Said], full: list[Said]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("process", "first token", "from nothing", "", "maps", "its share"):
        table.add_column(heading, justify="right")
    for pid, answer, kib, again in zip(pids, answers, held, full, strict=True):
        table.add_row(
            f"pid {pid}",
            f"{answer['first_s']:.2f} s",
            f"{again['full_s']:.2f} s",
            f"{again['full_s'] / answer['first_s']:.0f}x",
            f"{kib['rss'] / 1024:.1f} MiB",
            f"{kib['pss'] / 1024:.1f} MiB",
        )
    return table

"""transmute, transitions, cancel: recipes on a command line, progress and ends."""

from collections.abc import Callable
from typing import Any

import msgspec

from libmem.abi.calls import (
    CancelTransition,
    Done,
    ListTransitions,
    ListTransitionsReply,
    Transmute,
    WaitTransition,
)
from libmem.abi.errors import Errno
from libmem.abi.learning import Gate
from libmem.abi.transitions import PrefillRecipe, TrainRecipe, TransitionStat, TransitionState
from tests.tools.memctl.fake import Memctl

WAITING = TransitionStat(
    number=7, recipe="prefill", name="/n/kv", sources=("/n/a@v1",), uid=0,
    state=TransitionState.WAITING, submitted_ns=1_700_000_000_000_000_000,
)  # fmt: skip


def changed(**fields: Any) -> TransitionStat:
    return msgspec.structs.replace(WAITING, **fields)


def in_turn(*replies: Any) -> Callable[[Any], Any]:
    """One after another, whatever is asked."""
    left = iter(replies)
    return lambda _request: next(left)


DONE = changed(state=TransitionState.DONE, version=2, quality={"tokens": 12.0}, began_ns=1,
               ended_ns=2_000_000_001)  # fmt: skip


def test_it_is_followed_to_its_end(memctl: Memctl) -> None:
    running = changed(state=TransitionState.RUNNING, done=1, total=4, note="prefilling", changes=2)
    found = memctl(
        "transmute", "prefill", "/n/kv", "/n/a", "/n/b",
        answers={Transmute: WAITING, WaitTransition: in_turn(running, DONE)},
    )  # fmt: skip
    assert found.out == "/n/kv@v2: tokens 12\n"
    asked = found.client.requests[0]
    assert asked == Transmute("/n/kv", ("/n/a", "/n/b"), PrefillRecipe())


def test_settings_are_words_or_json(memctl: Memctl) -> None:
    found = memctl(
        "transmute", "train", "/n/lora", "/n/a", "--detach", "--set", "rank=4",
        "--set", 'gate={"heldout_min": 0.5}', "--set", "model=abc",
        answers={Transmute: WAITING},
    )  # fmt: skip
    recipe = TrainRecipe(rank=4, gate=Gate(heldout_min=0.5), model="abc")
    assert found.client.requests == [Transmute("/n/lora", ("/n/a",), recipe)]
    assert found.out == "transition 7 of /n/kv\n"


def test_a_wrong_recipe_is_a_wrong_command_line(memctl: Memctl) -> None:
    for words in (("bake",), ("train", "--set", "rank"), ("train", "--set", "rank=many")):
        found = memctl("transmute", words[0], "/n/kv", "/n/a", *words[1:], answers={})
        assert found.status == 64
        assert found.client.requests == []


def test_a_failure_is_the_commands(memctl: Memctl) -> None:
    failed = changed(state=TransitionState.FAILED, errno=int(Errno.EGATE), message="refused: 0.4")
    found = memctl("transmute", "train", "/n/kv", "/n/a", answers={Transmute: failed})
    assert found.status == Errno.EGATE
    assert "refused: 0.4" in found.err


def test_they_are_listed(memctl: Memctl) -> None:
    running = changed(state=TransitionState.RUNNING, done=1, total=4, note="training")
    pages = [ListTransitionsReply((running,), next_after=7), ListTransitionsReply((DONE,))]
    lines = memctl("transitions", answers={ListTransitions: in_turn(*pages)}).out.splitlines()
    assert "1/4 training" in lines[1]
    assert "2.0 s" in lines[2] or "2 s" in lines[2]


def test_one_is_cancelled(memctl: Memctl) -> None:
    found = memctl("cancel", "7", answers={CancelTransition: Done()})
    assert found.client.requests == [CancelTransition(7)]

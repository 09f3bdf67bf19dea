"""Waiting: completions run their waiters in order, tasks go on where they stopped, none is lost."""

from collections.abc import Callable
from typing import Any

import pytest

from libmem.abi.errors import Errno, MemError
from memosd.kernel.wait import Completion, detach, spawn


async def add(one: Completion[int], other: Completion[int]) -> int:
    """Waits twice."""
    return await one + await other


def test_a_task_runs_to_its_first_wait_at_once_and_on_from_there() -> None:
    one, other = Completion[int](), Completion[int]()
    done = spawn(add(one, other))
    one.resolve(1)
    assert not done.is_done
    other.resolve(2)
    assert done.result() == 3


def test_what_is_there_already_is_not_waited_for() -> None:
    one, other = Completion[int](), Completion[int]()
    one.resolve(1)
    other.resolve(2)
    assert spawn(add(one, other)).result() == 3


def test_waiters_run_in_the_order_they_came_and_late_ones_at_once() -> None:
    done = Completion[str]()
    heard: list[int] = []
    for number in range(3):
        done.on_done(lambda number=number: heard.append(number))  # type: ignore[misc]
    assert heard == []
    done.resolve("x")
    done.on_done(lambda: heard.append(3))
    assert heard == [0, 1, 2, 3]


def test_an_error_is_raised_in_everybody_who_waits() -> None:
    source = Completion[int]()
    tasks = [spawn(add(source, source)) for _ in range(3)]
    source.fail(MemError(Errno.EIO, "broken"))
    for task in tasks:
        with pytest.raises(MemError, match="broken"):
            task.result()


@pytest.mark.parametrize("end", [lambda done: done.resolve(1), lambda done: done.fail(OSError())])
def test_a_completion_is_resolved_once(end: Callable[[Completion[int]], None]) -> None:
    done = Completion[int]()
    end(done)
    with pytest.raises(RuntimeError, match="once"):
        end(done)


def test_a_waiter_may_start_what_waits_again() -> None:
    """Resolving runs waiters at once, so new waits may be made while it does."""
    rounds = [Completion[int]() for _ in range(3)]
    heard: list[int] = []

    async def follow() -> None:
        for number, completion in enumerate(rounds):
            await completion
            heard.append(number)
            if number + 1 < len(rounds):
                rounds[number + 1].resolve(0)

    done = spawn(follow())
    rounds[0].resolve(0)
    assert heard == [0, 1, 2]
    assert done.is_done


@pytest.mark.parametrize(
    ("error", "level"), [(MemError(Errno.EIO, "disk"), "warning"), (ZeroDivisionError(), "error")]
)
def test_what_a_background_task_raises_is_logged_and_goes_no_further(
    surprises: list[Any], error: Exception, level: str
) -> None:
    async def fail() -> None:
        raise error

    done = detach(fail())
    assert done.is_done
    assert [entry["log_level"] for entry in surprises] == [level]
    surprises.clear()

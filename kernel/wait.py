"""Waiting without blocking: completions, and tasks that await them.

The kernel runs on one thread and never blocks. A syscall that must wait for I/O is a coroutine;
it awaits a `Completion`, which whoever does the work resolves *on the kernel thread*. There is no
event loop here: resolving a completion runs its waiters at once, in order, so tests decide every
interleaving. After an await the world may have changed; the coroutine checks again before it
commits anything.
"""

from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar

import structlog

from libmem.abi.errors import MemError

__all__ = ["Completion", "detach", "first_done", "spawn"]

T = TypeVar("T")


class Completion(Generic[T]):
    """A result that will be there later; resolved exactly once, awaited by any number."""

    __slots__ = ("_error", "_value", "_waiters", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._waiters: list[Callable[[], None]] = []

    def resolve(self, value: T) -> None:
        """Hand the value to everybody who waits."""
        self._finish(value, None)

    def fail(self, error: BaseException) -> None:
        """Raise the error in everybody who waits.

        A MemError comes without its traceback and cause. They would keep, in a circle with this
        object, all that the failed work had in hand: a payload, or a view of freed memory.
        """
        if isinstance(error, MemError):
            error.__cause__ = error.__context__ = None
            error = error.with_traceback(None)
        self._finish(None, error)

    def on_done(self, waiter: Callable[[], None]) -> None:
        """Call `waiter` when done, at once if it is done already."""
        if self.is_done:
            waiter()
        else:
            self._waiters.append(waiter)

    def result(self) -> T:
        """The value, or raise the error; only when done."""
        assert self.is_done
        if self._error is None:
            return self._value  # type: ignore[return-value]
        try:
            raise self._error
        finally:
            del self  # from the traceback: it would hold us, we hold the error, for ever

    def __await__(self) -> Generator["Completion[T]", None, T]:
        if not self.is_done:
            yield self
        try:
            return self.result()
        finally:
            del self  # as in `result`

    def _finish(self, value: T | None, error: BaseException | None) -> None:
        if self.is_done:
            raise RuntimeError("a completion is resolved once")
        self.is_done = True
        self._value, self._error = value, error
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter()


def spawn(coroutine: Coroutine[Completion[Any], None, T]) -> Completion[T]:
    """Run a coroutine up to its first wait and on from there as its completions resolve."""
    task = _Task(coroutine)
    task.step()
    return task.done


class _Task(Generic[T]):
    """A coroutine under way.

    Not a closure: one that names itself is a cycle, and would keep a call's result, a MiB maybe,
    until the garbage collector comes by.
    """

    __slots__ = ("_coroutine", "done")

    def __init__(self, coroutine: Coroutine[Completion[Any], None, T]) -> None:
        self._coroutine = coroutine
        self.done: Completion[T] = Completion()

    def step(self) -> None:
        """Run to the next wait that is none yet."""
        try:
            while True:
                waited = self._coroutine.send(None)
                if not waited.is_done:
                    waited.on_done(self.step)
                    return
        except StopIteration as stop:
            self.done.resolve(stop.value)
        except BaseException as error:  # noqa: BLE001
            self.done.fail(error)


def first_done(completions: Iterable[Completion[Any]]) -> Completion[None]:
    """Done once any of them is, however it ended."""
    done: Completion[None] = Completion()

    def resolve() -> None:
        if not done.is_done:
            done.resolve(None)

    for completion in completions:
        completion.on_done(resolve)
    return done


def detach(coroutine: Coroutine[Completion[Any], None, T]) -> Completion[T]:
    """Run a background task that nobody awaits; what it raises is logged, never lost."""
    done = spawn(coroutine)

    def report() -> None:
        try:
            done.result()
        except MemError as error:  # the world's doing, not a bug: no traceback
            _log.warning("background task failed", task=repr(coroutine), error=str(error))
        except BaseException:  # noqa: BLE001
            _log.exception("background task failed", task=repr(coroutine))

    done.on_done(report)
    return done


_log = structlog.get_logger("memosd.kernel")

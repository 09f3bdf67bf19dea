"""How one list of operations becomes the methods of two clients.

An operation is written once, without I/O, and decorated: as the request whose reply is the result
(`one_call`), as steps (`steps`), or as pages of items (`pages`). What results is a plain method
that hands its request or generator to the client it is called on. A blocking client returns the
result, an awaiting one a coroutine of it; a type checker is shown that difference by `Method` and
`Listing`, which do not exist at run time.

Used by `operations` alone.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from libmem.abi.calls import Call
from libmem.abi.structs import Value
from libmem.steps import Pages, Steps

__all__ = ["Awaiting", "Blocking", "Listing", "Method", "one_call", "pages", "steps"]

P = ParamSpec("P")
R = TypeVar("R", bound=Value)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Blocking:
    """Marks a client whose methods return their results."""


class Awaiting:
    """Marks a client whose methods return coroutines of their results."""


class Method(Protocol[P, T_co]):
    """How a type checker sees an operation."""

    @overload
    def __get__(self, client: Blocking, owner: Any = None) -> Callable[P, T_co]: ...
    @overload
    def __get__(
        self, client: Awaiting, owner: Any = None
    ) -> Callable[P, Coroutine[Any, Any, T_co]]: ...
    @overload
    def __get__(self, client: None, owner: Any = None) -> Callable[..., Any]: ...


class Listing(Protocol[P, T_co]):
    """How a type checker sees an operation that yields."""

    @overload
    def __get__(self, client: Blocking, owner: Any = None) -> Callable[P, Iterator[T_co]]: ...
    @overload
    def __get__(self, client: Awaiting, owner: Any = None) -> Callable[P, AsyncIterator[T_co]]: ...
    @overload
    def __get__(self, client: None, owner: Any = None) -> Callable[..., Any]: ...


def one_call(build: Callable[Concatenate[Any, P], Call[R]]) -> Method[P, R]:
    """An operation that is one syscall: `build` makes the request."""

    @wraps(build)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(build(self, *args, **kwargs))

    return cast("Method[P, R]", method)


def steps(build: Callable[Concatenate[Any, P], Steps[T]]) -> Method[P, T]:
    """An operation of several steps, or with a result of its own."""

    @wraps(build)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._run(build(self, *args, **kwargs))

    return cast("Method[P, T]", method)


def pages(build: Callable[Concatenate[Any, P], Pages[T]]) -> Listing[P, T]:
    """An operation that yields items, fetched page by page as they are asked for."""

    @wraps(build)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._iterate(build(self, *args, **kwargs))

    return cast("Listing[P, T]", method)

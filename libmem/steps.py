"""What the clients' shared code asks for instead of doing it: the seam between logic and I/O.

The logic of both clients is written once, as generators that yield one of these requests and are
sent its answer, or thrown its error. The synchronous client answers by blocking, the asyncio
client by awaiting; a test answers with whatever it likes.

    an operation (`Operations`)    yields  Call | Acquire | Commit      -> Steps[result]
    a listing (`Operations`)       yields  Call | Items                 -> Pages[item]
    a call (`Connection.performing`)  yields  Bind | Open | Send | Pause   -> Effects[result]
"""

from collections.abc import Callable, Generator
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from libmem.abi.calls import Call
from libmem.abi.structs import Value
from libmem.lease import Lease
from libmem.link import Link

__all__ = [
    "Acquire",
    "Bind",
    "Commit",
    "Effect",
    "Effects",
    "Items",
    "Open",
    "Pages",
    "Pause",
    "Send",
    "Step",
    "Steps",
    "drive",
    "paged",
]

E = TypeVar("E")
T = TypeVar("T")
R = TypeVar("R", bound=Value)
Place = TypeVar("Place", int, str)


class Acquire(NamedTuple):
    """Send a call that grants a handle; answered with a `Grant`."""

    request: Call[Any]


class Commit(NamedTuple):
    """Send a call about a leased handle, to its own session or not at all."""

    lease: Lease
    request: Call[Any]


class Items(NamedTuple, Generic[T]):
    """Hand these to the caller, one by one, before going on."""

    items: tuple[T, ...]


class Bind(NamedTuple):
    """Be connected; answered with the link."""

    deadline: float


class Open(NamedTuple):
    """Try once to open a link; answered with it."""

    deadline: float


class Send(NamedTuple):
    """One round trip; answered with the reply."""

    link: Link
    request: Call[Any]
    deadline: float


class Pause(NamedTuple):
    """Let some time pass."""

    seconds: float


Step: TypeAlias = Call[Any] | Acquire | Commit
Steps: TypeAlias = Generator[Step, Any, T]
Pages: TypeAlias = Generator[Call[Any] | Items[T], Any, None]
Effect: TypeAlias = Bind | Open | Send | Pause
Effects: TypeAlias = Generator[Effect, Any, T]


def drive(generator: Generator[E, Any, T], answer: Callable[[E], Any]) -> T:
    """Run a generator to its result, answering all it asks for."""
    try:
        wanted = next(generator)
        while True:
            try:
                value = answer(wanted)
            except BaseException as error:  # noqa: BLE001 - the generator decides, and re-raises
                wanted = generator.throw(error)
            else:
                wanted = generator.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


def paged(
    ask: Callable[[Place], Call[R]],
    start: Place,
    turn: Callable[[R], tuple[tuple[T, ...], Place]],
) -> Pages[T]:
    """A listing that the kernel answers page by page.

    `ask` makes the request for the page that begins at a place; `turn` says what a reply holds
    and where the next page begins. Places are the kernel's own; that of the first page is empty
    or 0, and so is what comes after the last.
    """
    place = start
    while True:
        reply: R = yield ask(place)
        items, place = turn(reply)
        yield Items(items)
        if not place:
            return

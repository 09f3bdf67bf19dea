"""What a client asks about transitions: memories that change type.

The part of `operations` that is about work under way in the daemon; written in the same way.
"""

from collections.abc import Iterable

from libmem.abi import calls as c
from libmem.abi.errors import MemError, known_errno
from libmem.abi.limits import WATCH_MAX_MS
from libmem.abi.transitions import Recipe, TransitionStat, TransitionState
from libmem.methods import pages, steps
from libmem.steps import Pages, Steps, paged

__all__ = ["Transitions"]


class Transitions:
    """Ask for a transition, follow it, cancel it."""

    @steps
    def transmute(
        self, name: str, sources: Iterable[str], recipe: Recipe, *, wait: bool = True
    ) -> Steps[TransitionStat]:
        """Have a worker of the daemon make a cube of others, with the rights of the caller.

        `wait`: until it is over; else answers at once, and `wait_transition` tells the end.
        Errors: EOPNOTSUPP (no model is configured), EOUTDATED (a source was changed meanwhile),
        ECANCELED, and those of reading the sources and of writing `name`.
        """
        stat: TransitionStat = yield c.Transmute(name, tuple(sources), recipe)
        return (yield from _until_over(stat)) if wait else stat

    @steps
    def wait_transition(self, number: int) -> Steps[TransitionStat]:
        """Wait until a transition is over. Errors: ENOENT, EPERM, and whatever it failed with."""
        stat: TransitionStat = yield c.WaitTransition(number)
        return (yield from _until_over(stat))

    @pages
    def transitions(self) -> Pages[TransitionStat]:
        """The transitions of one's own user; to the administrator all of them."""
        return paged(c.ListTransitions, 0, lambda reply: (reply.transitions, reply.next_after))

    @steps
    def cancel_transition(self, number: int) -> Steps[None]:
        """Have a transition come to nothing. Idempotent. Errors: ENOENT, EPERM."""
        yield c.CancelTransition(number)


def _until_over(stat: TransitionStat) -> Steps[TransitionStat]:
    while not stat.is_over:
        stat = yield c.WaitTransition(stat.number, stat.changes, WATCH_MAX_MS)
    if stat.state is not TransitionState.DONE:
        raise MemError(known_errno(stat.errno), stat.message, transition=stat.number)
    return stat

"""The whole kernel against a dict, with hints that wait, pins that are listed and new policies."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import Advice
from memosd.kernel.policies.table import POLICIES
from tests.kernel.model import SETTINGS, clients, names
from tests.kernel.test_machine import KernelMachine


class HintsMachine(KernelMachine):
    """As the machine it extends; none of this may change what any cube is."""

    @rule(who=clients, name=names, advice=st.sampled_from(Advice), is_urgent=st.booleans())
    def hint(self, who: int, name: str, advice: Advice, is_urgent: bool) -> None:
        request = c.AdviseCube(name, advice, 1_000_000 if is_urgent else 0, wait=True)
        errno, reply = self.ask(self.clients[who], request, {Errno.ENOENT})
        if errno is None:
            assert reply.outcome is not c.AdviceOutcome.QUEUED

    @rule(who=clients, several=st.lists(names, min_size=2, max_size=5))
    def hint_and_die(self, who: int, several: list[str]) -> None:
        """Several at once, by somebody who is gone before they are carried out."""
        for name in several:
            self.clients[who].start(c.AdviseCube(name, Advice.WILLNEED, wait=True))
        self.die(who)

    @rule(policy=st.sampled_from(sorted(POLICIES)))
    def policy(self, policy: str) -> None:
        assert self.ask(self.world.root, c.SetPolicy(policy))[1].name == policy

    @invariant()
    def what_is_pinned_is_listed(self) -> None:
        """At rest nothing waits either."""
        assert len(self.world.kernel.prefetch) == 0
        pins = self.ask(self.world.root, c.ListPins())[1].pins
        held = [each.handle for each in self.model.held if each.kind == "pin"]
        assert sorted(each.handle for each in pins) == sorted(held)


TestHints = HintsMachine.TestCase
TestHints.settings = settings(SETTINGS, max_examples=30)

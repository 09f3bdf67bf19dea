"""The whole kernel against a dict, with writes that supersede others among the rules."""

from hypothesis import settings
from hypothesis.stateful import rule

from libmem.abi import calls as c
from libmem.abi.errors import Errno
from libmem.abi.structs import CubeType
from tests.kernel.model import NO_ROOM, SETTINGS, clients, names, sizes
from tests.kernel.test_machine import KernelMachine


class SuccessionMachine(KernelMachine):
    """As the machine it extends; a superseded cube has one version more over the same payload."""

    @rule(who=clients, name=names, old=names, size=sizes)
    def supersede(self, who: int, name: str, old: str, size: int) -> None:
        payload = self.model.fresh(size, is_cache=False)
        request = c.WriteCube(
            name=name, payload=payload.content, type=CubeType.BLOB, supersedes=(old,)
        )
        refusals = NO_ROOM | self.disk_errors() | {Errno.EINVAL}  # a cache cube cannot
        if old not in self.model.cubes or old == name:
            refusals |= {Errno.ENOENT}
        errno, reply = self.ask(self.clients[who], request, refusals)
        if errno is not None:
            return
        assert self.model.write(name, reply.id, payload) == reply.version
        ended = self.model.cubes[old]
        ended.add(*ended.versions[ended.current])
        about = self.world.root.stat(old).descriptive
        assert (about.superseded_by, about.valid_to_ns > 0) == (reply.id.hex(), True)


TestSuccession = SuccessionMachine.TestCase
TestSuccession.settings = settings(SETTINGS, max_examples=20)

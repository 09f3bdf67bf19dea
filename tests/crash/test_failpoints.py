"""The daemon dies at every named point of the code, under load, and loses nothing it promised."""

import re

import pytest

from libmem import CubeType, Durability
from libmem.abi.failpoints import EXIT_STATUS
from libmem.options import CubeOptions
from tests.crash.trial import BUSY, finish_all, writing
from tests.crash.witness import LARGE
from tests.e2e.daemon import ROOT, Daemon

PASSAGES = {
    "page.write.before": (9,),
    "page.write.half": (2,),
    "page.fsync.before": (7,),
    "page.rename.before": (4,),
    "page.rename.after": (8,),
    "page.free.before": (2,),
    "page.blocks.before": (2,),
    "page.blocks.between": (5, 9),
    "writeback.form.before": (1, 2),
    "store.stage": (12, 40),
    "store.commit.before": (12, 45),
    "store.commit.after": (12, 50),
    "ledger.settle.before": (12, 55),
    "dispatch.reply.before": (40, 150),
    "writeback.settle.before": (2,),
    "index.commit.before": (2,),
    "index.commit.after": (1,),
}
"""Point -> at which of its passages to die; those of a boot on an empty store come first."""

_CACHE: CubeOptions = {"type": CubeType.BLOB, "durability": Durability.CACHE}
_HIT = re.compile(r'failpoints\.hit\("([a-z.]+)"\)')


def test_every_point_of_the_code_is_here() -> None:
    folders = ("kernel", "drivers", "memosd")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {name for path in files for name in _HIT.findall(path.read_text())}
    assert found == set(PASSAGES)


@pytest.mark.parametrize(
    ("point", "passage"), [(point, nth) for point, each in PASSAGES.items() for nth in each]
)
def test_a_death_at(point: str, passage: int, idle: Daemon) -> None:
    idle.config = BUSY
    idle.start(f"{point}=exit@{passage}")
    with writing(idle, seed=passage) as team:
        assert idle.wait_for_end() == EXIT_STATUS
        for witness in team:
            witness.wind_up()
        idle.start()
    assert sum(witness.acknowledged for witness in team) > 0 or passage < 10
    finish_all(idle, team)


@pytest.mark.parametrize(
    ("point", "passage"),
    [("store.stage", 2), ("store.commit.before", 2), ("store.commit.after", 1),
     ("store.commit.after", 2)],
)  # fmt: skip
def test_a_death_while_coming_back_from_a_death(point: str, passage: int, idle: Daemon) -> None:
    """Recovery itself may be cut short at any of its commits."""
    idle.config = BUSY.replace("0.01", "86400")  # so that there is something to recover
    idle.start()
    with writing(idle) as team:
        for witness in team:
            witness.wait_for_more(30)
        with idle.connect() as client:
            client.write("/t/lost", bytes(LARGE), **_CACHE)
        idle.kill()
        for witness in team:
            witness.wind_up()
        idle.spawn(f"{point}=exit@{passage}")
        assert idle.wait_for_end() == EXIT_STATUS
        idle.start()
    finish_all(idle, team)

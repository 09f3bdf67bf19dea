"""The daemon dies at every named point of the code, under load, and loses nothing it promised."""

import re

import pytest

from libmem.abi.failpoints import EXIT_STATUS
from tests.crash.trial import BUSY, finish_all, writing
from tests.e2e.daemon import ROOT, Daemon

PASSAGES = {
    "page.write.before": (1, 9),
    "page.write.half": (2, 8),
    "page.fsync.before": (1, 7),
    "page.rename.before": (2, 9),
    "page.rename.after": (1, 8),
    "page.free.before": (1, 4),
    "store.stage": (12, 40),
    "store.commit.before": (12, 45),
    "store.commit.after": (12, 50),
    "ledger.settle.before": (12, 55),
    "dispatch.reply.before": (40, 150),
    "writeback.settle.before": (1, 4),
    "index.commit.before": (1, 4),
    "index.commit.after": (1, 4),
}
"""Point -> at which of its passages to die; those of a boot on an empty store come first."""

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


@pytest.mark.parametrize("point", ["store.stage", "store.commit.before", "store.commit.after"])
@pytest.mark.parametrize("passage", [1, 2])
def test_a_death_while_coming_back_from_a_death(point: str, passage: int, idle: Daemon) -> None:
    """Recovery itself may be cut short at any of its commits."""
    idle.config = BUSY.replace("0.01", "86400")  # so that there is something to recover
    idle.start()
    with writing(idle) as team:
        for witness in team:
            witness.wait_for_more(30)
        idle.kill()
        for witness in team:
            witness.wind_up()
        idle.spawn(f"{point}=exit@{passage}")
        assert idle.wait_for_end() == EXIT_STATUS
        idle.start()
    finish_all(idle, team)

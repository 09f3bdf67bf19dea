"""kill -9 at moments that nobody chose, under load, again and again on the same data."""

import random

import pytest

from tests.crash.kvwitness import witnesses
from tests.crash.trial import BUSY, check_all, finish_all
from tests.e2e.daemon import Daemon


def _kill_again_and_again(daemon: Daemon, rounds: int, seed: int) -> None:
    dice = random.Random(seed)
    daemon.config = BUSY
    daemon.start()
    team = witnesses(daemon, 4, seed)
    for _ in range(rounds):
        for witness in team:
            witness.start()
        team[0].wait_for_more(dice.randrange(1, 60))
        daemon.kill()
        for witness in team:
            witness.wind_up()
        daemon.start()
        for witness in team:
            witness.rest()
        check_all(daemon, team)
        team = [witness.again() for witness in team]
    finish_all(daemon, team)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kill_after_kill(seed: int, idle: Daemon) -> None:
    _kill_again_and_again(idle, 5, seed)

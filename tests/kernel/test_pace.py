"""How much text a worker is given at once: what the model can do within the time limit."""

import pytest

from libmem.abi.errors import Errno, MemError
from tests.kernel.fakes import SECOND_NS
from tests.kernel.test_embedding import MODEL, OTHER, World


@pytest.fixture
def world() -> World:
    return World()


class SlowModel:
    """A worker that embeds so many characters a second, and is killed where it takes too long."""

    def __init__(self, world: World, per_second: float) -> None:
        self.world, self.per_second = world, per_second
        self.sizes: list[int] = []
        self.deaths = 0

    def work(self) -> None:
        while self.world.jobs.sent:
            job = self.world.jobs.take()
            self.sizes.append(job.characters)
            took_ns = int(job.characters / self.per_second * SECOND_NS)
            if took_ns < self.world.jobs.run_max_ns:
                job.answer(took_ns=took_ns)
            else:
                self.deaths += 1
                job.done.fail(MemError(Errno.ETIMEDOUT, "the job was not done within 60 s"))


def test_a_slow_model_gets_batches_that_it_can_do(world: World) -> None:
    model = SlowModel(world, per_second=100)
    world.write(["x" * 500 for _ in range(100)])
    model.work()
    assert model.deaths == 0
    assert world.index.counts == (100, 0, MODEL)
    assert model.sizes[-1] == 500, "a twentieth of a minute holds no more than one"


def test_a_fast_model_gets_large_batches_soon(world: World) -> None:
    model = SlowModel(world, per_second=1e6)
    world.write(["x" * 1_000 for _ in range(400)])
    model.work()
    assert model.sizes[0] <= 2_000
    assert max(model.sizes) > 60_000
    assert len(model.sizes) < 20


def test_another_model_begins_small_again(world: World) -> None:
    world.write(["x" * 1_000 for _ in range(400)])
    SlowModel(world, per_second=1e6).work()
    world.write(["y" * 1_000])
    world.jobs.take().answer(OTHER)
    sizes = [job.characters for job in world.jobs.sent]
    assert max(sizes) < 10_000


def test_a_model_that_became_slow_is_given_less_at_once(world: World) -> None:
    world.write(["x" * 1_000 for _ in range(400)])
    model = SlowModel(world, per_second=1e6)
    model.work()
    world.write(["y" * 1_000 for _ in range(200)])
    model.per_second, model.sizes = 50, []
    model.work()
    assert model.deaths <= 3, "two were under way"
    assert world.index.counts == (600, 0, MODEL)


def test_a_text_that_takes_too_long_alone_stops_no_other(world: World) -> None:
    model = SlowModel(world, per_second=100)
    world.write(["x" * 100])
    model.work()
    world.write(["y" * 7_000, *("z" * 100 for _ in range(30))])
    model.work()
    assert model.sizes.count(7_000) == 2, "the machine may have been at fault"
    assert world.index.counts == (32, 1, MODEL)
    assert "1 passages could not be embedded" in world.embedding.stat().problem
    assert "not done within 60 s" in world.embedding.stat().problem

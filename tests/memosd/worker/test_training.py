"""Training that is cut off goes on; what is kept of it is whole, or not there."""

import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from libmem.abi.calls import WriteReply  # noqa: E402
from libmem.abi.errors import Errno, MemError  # noqa: E402
from libmem.abi.jobs import TransmuteRequest  # noqa: E402
from libmem.abi.learning import Gate  # noqa: E402
from libmem.abi.structs import CubeType  # noqa: E402
from libmem.abi.transitions import TrainRecipe  # noqa: E402
from memosd.worker.transitions import adapters  # noqa: E402
from memosd.worker.transitions.models import Models  # noqa: E402
from memosd.worker.transitions.scratch import Scratch  # noqa: E402
from memosd.worker.transitions.task import Task  # noqa: E402
from tests.e2e.tinymodel import make_folder  # noqa: E402
from tests.tools.memctl.fake import make_stat  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
RECIPE = TrainRecipe(gate=Gate(0, 0, 1e6), rank=2, rounds=1.0, kept_texts=4)


class FakeDaemon:
    """What a task asks of a client: one fact, and where the adapter goes."""

    def __init__(self) -> None:
        self.version = 1
        self.written: list[bytes] = []

    def stat(self, name: str) -> Any:
        questions = [{"question": "Who is out?", "answer": "cat"}]
        return make_stat(
            name,
            size_bytes=15,
            type=CubeType.PLAINTEXT,
            version=self.version,
            attributes={"questions": questions},
        )  # fmt: skip

    def read(self, name: str) -> bytes:
        return b"The cat is out."

    def write(self, name: str, payload: bytes, **options: Any) -> WriteReply:
        self.written.append(payload)
        return WriteReply(id=b"", version=1, digest=b"")


class FakeTask(Task):
    """A task without a session."""

    def __init__(self, client: FakeDaemon, scratch: Scratch) -> None:
        self.request = TransmuteRequest(1, "/n/lora", ("/n/fact@v1",), RECIPE)
        self.client: Any = client
        self.scratch = scratch
        self.steps: list[int] = []
        self.is_wanted = True

    def report(
        self, done: int, total: int, note: str = "", quality: dict[str, float] | None = None
    ) -> None:
        if note == "training":
            self.steps.append(done)
        if not self.is_wanted:
            raise MemError(Errno.ECANCELED, "")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(str(make_folder(tmp_path_factory.mktemp("model"))), "auto", 1)


def train(task: FakeTask, models: Models, slices: int = 1_000_000) -> int | None:
    """So many slices of a training; its version where it came to its end."""
    work = adapters.train(task, models, RECIPE)
    for _ in range(slices):
        try:
            next(work)
        except StopIteration as end:
            version: int = end.value
            return version
    work.close()  # as a death would: nothing more is done
    return None


def test_what_was_cut_off_goes_on(models: Models, tmp_path: Path) -> None:
    whole = FakeTask(FakeDaemon(), Scratch(tmp_path / "a", pause_s=1e9))
    assert train(whole, models) == 1
    scratch = Scratch(tmp_path / "b", pause_s=0.0)
    first = FakeTask(FakeDaemon(), scratch)
    assert train(first, models, slices=12) is None
    assert first.client.written == []
    (kept,) = (tmp_path / "b").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    second = FakeTask(FakeDaemon(), Scratch(tmp_path / "b", pause_s=0.0))
    assert train(second, models) == 1
    assert second.steps[0] > 1
    assert second.steps[-1] == whole.steps[-1] == 40
    assert not any((tmp_path / "b").iterdir())
    for one, other in zip(tensors(whole), tensors(second), strict=True):
        torch.testing.assert_close(one, other)


def tensors(task: FakeTask) -> list[Any]:
    from safetensors.torch import load

    (payload,) = task.client.written
    return [each for _, each in sorted(load(payload).items())]


def test_another_version_of_the_source_begins_anew(models: Models, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, pause_s=0.0)
    train(FakeTask(FakeDaemon(), scratch), models, slices=5)
    daemon = FakeDaemon()
    daemon.version = 2
    task = FakeTask(daemon, scratch)
    train(task, models)
    assert task.steps[0] == 1


def test_a_damaged_file_begins_anew(models: Models, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, pause_s=0.0)
    for damage in (b"", b"garbage" * 10):
        train(FakeTask(FakeDaemon(), scratch), models, slices=5)
        (kept,) = tmp_path.iterdir()
        kept.write_bytes(damage)
        task = FakeTask(FakeDaemon(), scratch)
        assert train(task, models) == 1
        assert task.steps[0] == 1


def test_without_room_it_is_trained_all_the_same(models: Models, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "gone", pause_s=0.0)
    (tmp_path / "gone").rmdir()
    task = FakeTask(FakeDaemon(), scratch)
    assert train(task, models) == 1


def test_a_cancelled_one_gives_the_model_back(models: Models, tmp_path: Path) -> None:
    model = models.model()
    before = [type(each) for each in model.modules()]
    task = FakeTask(FakeDaemon(), Scratch(tmp_path))
    task.is_wanted = False
    with pytest.raises(MemError) as canceled:
        train(task, models)
    assert canceled.value.errno is Errno.ECANCELED
    assert [type(each) for each in model.modules()] == before
    assert task.client.written == []


def test_what_nobody_went_on_with_is_removed(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    assert scratch.keep(b"old", {"a": torch.zeros(2)})
    (old,) = tmp_path.iterdir()
    assert scratch.keep(b"new", {"a": torch.ones(2)})
    os.utime(old, (0, 0))
    again = Scratch(tmp_path)
    assert again.load(b"old") is None
    assert again.load(b"new") is not None


def test_it_takes_so_much_room(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, room_bytes=3000)
    for number in range(5):
        assert scratch.keep(bytes([number]), {"a": torch.zeros(250)})
        by_age = sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for place, file in enumerate(by_age):
            os.utime(file, (0, place))
    assert scratch.load(bytes([4])) is not None
    assert scratch.load(bytes([0])) is None
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3000


def test_what_is_refused_is_not_kept(models: Models, tmp_path: Path) -> None:
    task = FakeTask(FakeDaemon(), Scratch(tmp_path, pause_s=0.0))
    strict = TrainRecipe(gate=Gate(trained_min=1.0), rank=1, steps=2, learning_rate=1e-6)
    task.request = TransmuteRequest(1, "/n/lora", ("/n/fact@v1",), strict)
    with pytest.raises(MemError) as refused:
        list(adapters.train(task, models, strict))
    assert refused.value.errno is Errno.EGATE
    assert not any(tmp_path.iterdir())

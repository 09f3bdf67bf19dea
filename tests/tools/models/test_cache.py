"""A folder of the cache counts when it is whole, and only then."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec
import pytest

from libmem.abi.errors import Errno, MemError
from libmem.abi.paths import models_dir
from memosd.tools.models import catalogue
from memosd.tools.models.cache import STAMP, find_model
from memosd.tools.models.catalogue import CATALOGUE, Model
from memosd.tools.models.make import make_model
from tests.tools.models.conftest import Registry, silent


def flip(folder: Path) -> None:
    """A bit of the weights changes, and nothing else."""
    weights = bytearray((folder / "weights.bin").read_bytes())
    weights[70_000] ^= 1
    (folder / "weights.bin").write_bytes(weights)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": flip,
    "the end": lambda folder: (folder / "weights.bin").write_bytes(b"short"),
    "a file": lambda folder: (folder / "pooling/config.json").unlink(),
    "the stamp": lambda folder: (folder / STAMP).unlink(),
    "half the stamp": lambda folder: (folder / STAMP).write_text('{"requirement": "fake'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_absent_and_made_again(registry: Registry, damage: str) -> None:
    folder = make_model(registry.model, silent)
    assert find_model("fake") == folder
    DAMAGES[damage](folder)
    with pytest.raises(MemError, match="`make models`") as refusal:
        find_model("fake")
    assert refusal.value.errno is Errno.ENOENT
    make_model(registry.model, silent)
    assert find_model("fake") == folder


@pytest.mark.parametrize(
    "change", [{"revision": 2}, {"wheel_sha256": "0" * 64}, {"requirement": "fake-model==2.0"}]
)
def test_what_was_made_of_something_else_is_absent(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    make_model(registry.model, silent)
    monkeypatch.setattr(
        catalogue, "CATALOGUE", (msgspec.structs.replace(registry.model, **change),)
    )
    with pytest.raises(MemError, match="`make models`"):
        find_model("fake")


def test_other_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(MemError, match=r"'gpt-7'.*smollm2-135m-instruct") as refusal:
        find_model("gpt-7")
    assert refusal.value.errno is Errno.EINVAL


def test_the_environment_chooses_the_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("MEMOSD_MODELS_DIR", raising=False)
    assert models_dir() == tmp_path / ".cache/memosd/models"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert models_dir() == Path("/var/cache/me/memosd/models")
    monkeypatch.setenv("MEMOSD_MODELS_DIR", "/srv/models")
    assert models_dir() == Path("/srv/models")


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_rows_pin_a_wheel_and_stay_in_their_folder(model: Model) -> None:
    assert len(bytes.fromhex(model.wheel_sha256)) == 32
    assert "==" in model.requirement
    assert model.need_bytes > 2 * model.wheel_bytes
    assert not model.gguf or model.gguf in model.files.values()
    for path in map(PurePosixPath, model.files.values()):
        assert not path.is_absolute()
        assert ".." not in path.parts

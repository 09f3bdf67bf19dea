"""A daemon of the test's own for each crash test."""

from collections.abc import Iterator

import pytest

from tests.e2e.daemon import Daemon


@pytest.fixture
def idle() -> Iterator[Daemon]:
    """A daemon that the test starts itself."""
    daemon = Daemon()
    yield daemon
    daemon.finish()

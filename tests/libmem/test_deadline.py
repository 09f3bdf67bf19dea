"""How long a client waits for a reply."""

import time

import msgspec
import pytest

from libmem.abi import calls as c
from libmem.abi.limits import HINT_PATIENCE_NS
from libmem.abi.structs import Advice
from libmem.connection import deadline_of


def test_who_waits_for_a_hint_waits_until_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    hint = c.AdviseCube("/n/a", Advice.WILLNEED, deadline_ns=5 * 10**9, wait=True)
    assert deadline_of(hint, 10.0) == 115.0
    assert deadline_of(msgspec.structs.replace(hint, wait=False), 10.0) == 110.0


def test_without_a_deadline_it_waits_as_long_as_the_daemon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    hint = c.AdviseCube("/n/a", Advice.WILLNEED, wait=True)
    assert deadline_of(hint, 10.0) == 110.0 + HINT_PATIENCE_NS / 1e9
    assert deadline_of(msgspec.structs.replace(hint, wait=False), 10.0) == 110.0

"""The division of the descriptors: everybody's share, and what nobody may take."""

import pytest

from libmem.abi.errors import Errno, MemError
from memosd.connections import UNREAD_EVENTS
from memosd.descriptors import divide


@pytest.mark.parametrize("ceiling", [2048, 4096, 20_000, 262_144])
@pytest.mark.parametrize("sessions", [1, 1024, 1_000_000])
def test_all_shares_together_leave_what_libzmq_may_run_ahead(ceiling: int, sessions: int) -> None:
    share = divide(ceiling, sessions)
    assert min(share) >= 1
    assert share.sessions <= sessions
    taken = share.frames + 2 * share.sessions + 2 * share.strangers
    assert ceiling - taken >= UNREAD_EVENTS + 200
    assert ceiling - share.end_of_frames >= UNREAD_EVENTS + 200


def test_a_ceiling_that_is_too_low_is_refused() -> None:
    with pytest.raises(MemError) as caught:
        divide(2047, 1024)
    assert caught.value.errno is Errno.EMFILE
    assert "2047" in caught.value.message

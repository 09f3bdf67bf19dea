"""Dispatch: whatever comes in, one clear reply goes out, and the kernel goes on serving."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import ABI_VERSION, FRAME_MAX_BYTES, WATCH_MAX_MS
from libmem.abi.structs import Governance, Quota, Value
from libmem.abi.syscalls import BY_NAME, BY_NUMBER, SYSCALLS, Access
from libmem.abi.wire import Reply, decode_reply, encode, encode_request, fault_error
from memosd.kernel.dispatch import check_table
from memosd.kernel.syscalls.table import HANDLERS
from memosd.kernel.wait import Completion
from tests.kernel.world import PAGED, ROOT, Client, World, batch_of

STAT = BY_NAME["stat_cube"].number


def answer(client: Client, frame: bytes) -> Reply:
    """The one reply to a frame; what waits is waited for."""
    before = len(client.peer.frames)
    client.send(frame)
    client.world.settle()
    client.world.pass_time(WATCH_MAX_MS * 1_000_000)
    replies = client.peer.frames[before:]
    assert len(replies) == 1
    return decode_reply(replies[0])


def envelope(client: Client, args: object, **changes: Any) -> bytes:
    """A `stat_cube` frame, changed as a test wants it."""
    fields: dict[str, Any] = {
        "abi": ABI_VERSION,
        "seq": 77,
        "epoch": client.world.kernel.epoch,
        "number": STAT,
        **changes,
    }
    return encode((*fields.values(), args))


def still_serves(client: Client) -> None:
    """The kernel answers the next call as if nothing had been."""
    assert client.call(c.Info()).epoch == client.world.kernel.epoch


# -- frames that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"not msgpack at all",
        encode({"abi": 1}),
        encode((ABI_VERSION, 1, 1, STAT)),
        encode((ABI_VERSION, 1, 1, STAT, {}, "surplus")),
        encode(("1", 1, 1, STAT, {})),
        encode((ABI_VERSION, None, 1, STAT, {})),
        encode((ABI_VERSION, 1, 1.5, STAT, {})),
        b"\x95" + bytes(FRAME_MAX_BYTES),
        b"\x91" * 100_000,
    ],
    ids=lambda frame: repr(frame[:12]),
)
def test_what_is_no_request_is_answered_as_such(user: Client, frame: bytes) -> None:
    reply = answer(user, frame)
    assert (reply.seq, reply.errno) == (0, Errno.EBADMSG)
    still_serves(user)


def test_every_truncation_of_a_request_is_answered(world: World, user: Client) -> None:
    request = c.WriteCube(name="/n/a", payload=b"x" * 20, governance=Governance())
    frame = encode_request(request, 5, world.kernel.epoch)
    for end in range(len(frame)):
        assert answer(user, frame[:end]).errno == Errno.EBADMSG
    user.fails(c.StatCube(name="/n/a"), Errno.ENOENT)
    assert answer(user, frame).errno == 0


def test_deeply_nested_arguments_do_no_harm(user: Client) -> None:
    bomb = b"\x81\xa1k" * 100_000 + b"\xc0"
    nested = envelope(user, None)[:-1] + b"\x82\xa4name\xa4/n/a\xaaattributes" + bomb
    for number in (STAT, BY_NAME["write_cube"].number):
        frame = nested.replace(bytes([STAT]), bytes([number]), 1)
        assert answer(user, frame).errno == Errno.EBADMSG
    still_serves(user)


@settings(
    max_examples=300,
    deadline=None,
    # One kernel for all frames: that is the point.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_frame_however_odd_is_left_without_one_reply(
    data: st.DataObject, odd_frame_client: Client
) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=8)
        | st.binary(max_size=8) | st.floats(),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), inner, max_size=3),
        max_leaves=6,
    )  # fmt: skip
    row = data.draw(st.sampled_from(SYSCALLS))
    fields = st.sampled_from([field.encode_name for field in msgspec.structs.fields(row.request)]
                             or ["none"])  # fmt: skip
    args = data.draw(values | st.dictionaries(fields, values, max_size=4))
    if row.name in ("hello", "shutdown"):
        return  # their effect would be on the next example
    reply = answer(odd_frame_client, envelope(odd_frame_client, args, number=row.number))
    if reply.errno:
        error = fault_error(reply.errno, reply.body)
        assert error.errno in (*row.errors, Errno.EBADMSG, Errno.ESTALE), (row.name, args, error)
        assert "log_id" not in error.detail


@pytest.fixture
def odd_frame_client(world: World) -> Client:
    """Not the administrator, with one cube."""
    client = world.client()
    client.make("/n")
    client.write("/n/a", b"x")
    return client


# -- envelopes -----------------------------------------------------------------------------------


def test_another_abi_is_refused(user: Client) -> None:
    for abi in (0, ABI_VERSION + 1, 1 << 40):
        reply = answer(user, envelope(user, {"name": "/n/a"}, abi=abi))
        assert (reply.seq, reply.errno) == (77, Errno.EPROTONOSUPPORT)


def test_an_unknown_syscall_is_refused(user: Client) -> None:
    for number in (max(BY_NUMBER) + 1, 1 << 40, -1):
        assert answer(user, envelope(user, {}, number=number)).errno == Errno.ENOSYS


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"name": 7},
        {"name": None},
        {"name": b"/n/a"},
        {"name": "/n/a", "surplus": 1},
        [],
        "name",
        None,
        {"name": {"name": "/n/a"}},
        {7: "/n/a"},
    ],
    ids=repr,
)
def test_arguments_of_another_shape_are_refused(user: Client, args: object) -> None:
    assert answer(user, envelope(user, args)).errno == Errno.EBADMSG
    still_serves(user)


def test_a_request_for_another_boot_is_stale(world: World, user: Client) -> None:
    for epoch in (0, world.kernel.epoch + 1, 1 << 50):
        assert answer(user, envelope(user, {"name": "/n/a"}, epoch=epoch)).errno == Errno.ESTALE
    reply = answer(user, envelope(user, {"name": "/n/a"}))
    assert (reply.epoch, reply.errno) == (world.kernel.epoch, Errno.ENOENT)


# -- sessions ------------------------------------------------------------------------------------


def test_a_connection_without_a_session_may_only_say_hello(world: World) -> None:
    stranger = Client(world, world.root.identity)
    for row in SYSCALLS:
        if row.access is not Access.NONE:
            frame = envelope(stranger, {}, number=row.number)
            assert answer(stranger, frame).errno == Errno.ESTALE
    assert stranger.hello().uid == ROOT


def test_a_session_serves_only_once_its_token_was_shown(world: World) -> None:
    client = Client(world, world.root.identity._replace(pid=999))
    reply = client.hello(is_bound=False)
    client.fails(c.Info(), Errno.EPROTO)
    assert world.kernel.bind(reply.token, client.identity) is client.session
    still_serves(client)


def test_a_session_serves_only_the_process_that_opened_it(world: World, user: Client) -> None:
    user.write("/n/a", b"x")
    known = user.identity
    for other in (
        known._replace(pid=known.pid + 1),
        known._replace(uid=ROOT),
        known._replace(gid=known.gid + 1),
    ):
        user.identity = other
        user.fails(c.ReadCube(name="/n/a"), Errno.EPROTO)
    user.identity = known
    assert user.read("/n/a") == b"x"


def test_an_ended_session_is_stale(world: World, user: Client) -> None:
    world.kernel.gone(user.session)
    user.fails(c.Info(), Errno.ESTALE)
    user.hello()
    still_serves(user)


def test_only_the_administrator_may_call_what_is_his(world: World, user: Client) -> None:
    assert {row.name for row in SYSCALLS if row.access is Access.ADMIN} == {
        "set_quota",
        "fsck",
        "shutdown",
        "set_policy",
        "set_trace",
    }
    quota = c.SetQuota(namespace="/n", quota=Quota(cubes=1))
    for request in (quota, c.Fsck(), c.Shutdown()):
        user.fails(request, Errno.EPERM)
        batch = batch_of(request)
        if not isinstance(request, c.SetQuota):
            continue
        assert [item.errno for item in user.call(batch).results] == [Errno.EPERM]
    assert not world.gate.is_stopped
    world.root.call(c.Shutdown())
    assert world.gate.is_stopped


def test_calls_that_come_after_the_end_began_are_refused(world: World, user: Client) -> None:
    world.stop()
    user.fails(c.StatCube(name="/n/a"), Errno.ESHUTDOWN)
    user.fails(c.Hello(client="late"), Errno.ESHUTDOWN)


# -- surprises -----------------------------------------------------------------------------------


def broken(context: object, request: object) -> Value:
    """A handler with a bug."""
    raise ZeroDivisionError("secret of the kernel")


async def broken_later(context: object, request: object) -> Value:
    """A handler with a bug behind a wait."""
    done = Completion[None]()
    done.resolve(None)
    await done
    raise ZeroDivisionError("secret of the kernel")


@pytest.mark.parametrize("handler", [broken, broken_later])
def test_an_unexpected_exception_is_an_eio_with_a_log_id(
    world: World,
    user: Client,
    monkeypatch: pytest.MonkeyPatch,
    surprises: list[Any],
    handler: Callable[..., Value | Coroutine[Any, None, Value]],
) -> None:
    monkeypatch.setitem(world.kernel.dispatch._handlers, STAT, handler)
    told = [
        user.fails(c.StatCube(name="/n/a"), Errno.EIO),
        fault_error(
            Errno.EIO,
            user.call(batch_of(c.StatCube(name="/n/a"))).results[0].body,
        ),
    ]
    for error in told:
        assert re.fullmatch("[0-9a-f]{12}", str(error.detail["log_id"]))
        assert "secret" not in str(error)
    assert [entry["log_id"] for entry in surprises] == [e.detail["log_id"] for e in told]
    surprises.clear()
    still_serves(user)


# -- the table -----------------------------------------------------------------------------------


def test_handlers_and_rows_match_or_boot_is_refused() -> None:
    assert check_table(HANDLERS).keys() == BY_NUMBER.keys()
    lacking = {name: handler for name, handler in HANDLERS.items() if name != "stat_cube"}
    with pytest.raises(RuntimeError, match="stat_cube"):
        check_table(lacking)
    with pytest.raises(RuntimeError, match="surplus"):
        check_table({**HANDLERS, "surplus": HANDLERS["stat_cube"]})


def test_what_a_row_calls_a_wait_is_what_its_handler_may_do(user: Client) -> None:
    """A row that does not block is answered without any I/O, were it not for the commit."""
    for row in SYSCALLS:
        if row.blocks or row.name in ("hello", "shutdown"):
            continue
        assert not isinstance(_outcome(user, row.name), Coroutine), row.name


def _outcome(user: Client, name: str) -> object:
    """What the handler returns when it is called with the least that its struct takes."""
    row = BY_NAME[name]
    fields = {"name": "/n/a", "new_name": "/n/b", "path": "/n", "handle": 1, "namespace": "/n",
              "quota": {}, "advice": "cold", "model": "", "tokens": b"", "id": 1,
               "key": b"", "samples": [],
              "sources": ["/n/a"], "recipe": {"recipe": "prefill"}, "number": 1}  # fmt: skip
    known = {field.name for field in msgspec.structs.fields(row.request)}
    args = msgspec.convert({k: v for k, v in fields.items() if k in known}, row.request)
    context = user.world.context(user, row)
    try:
        return HANDLERS[name](context, args)
    except MemError as error:
        return error


def test_calls_are_counted(user: Client) -> None:
    before = user.call(c.Info()).calls
    user.send(b"")
    assert user.call(c.Info()).calls == before + 2


def test_info_tells_what_the_table_takes_on_disk(user: Client) -> None:
    before = user.call(c.Info()).table_bytes
    user.blob("/n/paged", bytes(PAGED))
    rows_bytes = user.call(c.Info()).table_bytes - before
    assert 0 < rows_bytes < PAGED, "a page file is not part of the table"
    user.blob("/n/small", bytes(1000))
    assert user.call(c.Info()).table_bytes - before > 1000 + rows_bytes

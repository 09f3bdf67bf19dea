"""Calls of the synchronous client against a daemon that behaves, is slow, or talks nonsense."""

import math
import threading
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

import libmem
from libmem.abi import calls as c
from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import CubeType
from libmem.connection import TIMEOUT_MAX_S
from libmem.options import CubeOptions, HeaderGroups, SearchOptions
from tests.libmem.fake_daemon import FakeDaemon, Incoming, hold, refuse, silent


def errno_of(raised: pytest.ExceptionInfo[MemError]) -> Errno:
    return raised.value.errno


def test_what_is_written_is_read(client: libmem.Client) -> None:
    reply = client.write("/notes/a", "größer", expected_version=0)
    assert reply.version == 1
    assert client.read("/notes/a") == "größer".encode()
    stat = client.stat("/notes/a")
    assert (stat.type, stat.size_bytes) == (CubeType.PLAINTEXT, 8)


def test_a_large_payload_goes_through_memory(client: libmem.Client, daemon: FakeDaemon) -> None:
    payload = bytes(range(256)) * 8192  # 2 MiB: above both limits
    client.write("/notes/large", payload)
    assert daemon.count("write_cube") == 0
    assert client.stat("/notes/large").type is CubeType.PLAINTEXT
    assert client.read("/notes/large") == payload
    assert daemon.count("mmap_cube") == 1
    client.info()
    assert daemon.live_sessions()[0].handles == 0


def test_a_large_write_that_fails_leaves_no_handle(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    daemon.script("seal_cube", refuse(MemError(Errno.EILSEQ, "not text", offset_bytes=7)))
    with pytest.raises(MemError) as raised:
        client.write("/notes/large", bytes(10_000))
    assert (errno_of(raised), raised.value.detail) == (Errno.EILSEQ, {"offset_bytes": 7})
    daemon.wait_for(lambda: daemon.live_sessions()[0].handles == 0)


def test_a_refusal_arrives_as_it_was_raised(client: libmem.Client) -> None:
    with pytest.raises(MemError, match="no cube /a/none") as raised:
        client.stat("/a/none")
    assert errno_of(raised) is Errno.ENOENT
    assert raised.value.detail == {"cube": "/a/none"}


def test_a_batch_returns_errors_as_values(client: libmem.Client) -> None:
    wrote, missing, read = client.batch(
        [c.WriteCube("/a/b", b"x"), c.StatCube("/a/none"), c.ReadCube("/a/b")]
    )
    assert wrote.version == 1
    assert isinstance(missing, MemError)
    assert missing.errno is Errno.ENOENT
    assert read.payload == b"x"


def test_a_listing_turns_pages(client: libmem.Client, daemon: FakeDaemon) -> None:
    names = [f"/a/{number}" for number in range(5)]
    for name in names:
        client.write(name, name)
    assert [stat.name for stat in client.list("/a", is_recursive=True)] == names
    assert daemon.count("readdir") == 3


def test_history_and_namespaces(client: libmem.Client) -> None:
    client.make_namespace("/a", 0o750)
    for text in ("one", "two"):
        client.write("/a/b", text)
    assert [stat.version for stat in client.history("/a/b")] == [2, 1]
    assert client.unlink("/a/b").versions == 2


def test_a_pin_is_held_until_released(client: libmem.Client, daemon: FakeDaemon) -> None:
    client.write("/a/b", "x")
    session = daemon.live_sessions()[0]
    with client.pin("/a/b") as pin:
        was_held = pin.is_held
        assert list(session.pinned.values()) == ["/a/b"]
    pin.release()
    assert (was_held, pin.is_held) == (True, False)
    daemon.wait_for(lambda: not session.pinned)
    assert daemon.count("unpin_cube") == 1


def test_a_dropped_pin_is_given_back_with_the_next_call(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    client.write("/a/b", "x")
    pin = client.pin("/a/b")
    del pin
    assert daemon.count("unpin_cube") == 0
    client.info()
    assert daemon.count("unpin_cube") == 1


def test_a_call_times_out_and_its_late_reply_is_ignored(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    client.write("/a/b", "x")
    daemon.script("stat_cube", hold)
    with pytest.raises(MemError) as raised:
        client.call(c.StatCube("/a/b"), timeout_s=0.02)
    assert errno_of(raised) is Errno.ETIMEDOUT
    daemon.wait_for(lambda: daemon.count("stat_cube") == 1)
    daemon.release_held()
    assert client.read("/a/b") == b"x"


def test_a_call_out_of_patience_from_the_start_times_out(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    daemon.script("info", silent)
    with pytest.raises(MemError) as raised:
        client.call(c.Info(), timeout_s=0)
    assert errno_of(raised) is Errno.ETIMEDOUT


@pytest.mark.parametrize("syscall", ["mmap_cube", "create_cube", "pin_cube"])
def test_a_handle_that_comes_late_is_given_back(
    syscall: str, daemon: FakeDaemon, open_memory: Callable[[], int]
) -> None:
    with libmem.connect(daemon.runtime_dir, timeout_s=0.05) as client:
        client.write("/a/b", "x")
        before = open_memory()
        daemon.script(syscall, hold)
        calls: dict[str, Callable[[], object]] = {
            "mmap_cube": lambda: client.map("/a/b"),
            "create_cube": lambda: client.create("/a/c", 100),
            "pin_cube": lambda: client.pin("/a/b"),
        }
        with pytest.raises(MemError) as raised:
            calls[syscall]()
        assert errno_of(raised) is Errno.ETIMEDOUT
        daemon.wait_for(lambda: daemon.count(syscall) == 1)
        daemon.release_held()
        client.call(c.StatCube("/a/b"), timeout_s=10)  # meets the late reply
        session = daemon.live_sessions()[0]
        daemon.wait_for(lambda: session.handles == 0)
        assert daemon.count(syscall) == 1
        assert open_memory() == before


def test_a_descriptor_that_comes_late_in_another_call_is_closed(
    client: libmem.Client, daemon: FakeDaemon, open_memory: Callable[[], int]
) -> None:
    def late_and_then_this(daemon: FakeDaemon, incoming: Incoming) -> None:
        daemon.answer_held()
        daemon.answer(incoming)

    client.write("/a/b", "x")
    before = open_memory()
    daemon.script("mmap_cube", hold)
    with pytest.raises(MemError):
        client.call(c.MmapCube("/a/b"), timeout_s=0.02)
    daemon.wait_for(lambda: daemon.count("mmap_cube") == 1)
    daemon.script("info", late_and_then_this)
    client.info()
    daemon.wait_for(lambda: daemon.live_sessions()[0].handles == 0)
    assert open_memory() == before


def test_a_late_handle_of_an_interrupted_call_is_given_back(
    client: libmem.Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.write("/a/b", "x")
    daemon.script("pin_cube", hold)
    link = client._connection.link
    assert link is not None

    def interrupted(deadline: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(link, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.pin("/a/b")
    daemon.wait_for(lambda: daemon.count("pin_cube") == 1)
    daemon.release_held()
    client.info()
    daemon.wait_for(lambda: daemon.count("unpin_cube") == 1)


def test_a_raw_call_keeps_the_handle_and_no_descriptor(
    client: libmem.Client, daemon: FakeDaemon, open_memory: Callable[[], int]
) -> None:
    client.write("/a/b", "x")
    before = open_memory()
    mapped = client.call(c.MmapCube("/a/b"))
    assert daemon.live_sessions()[0].mapped == {mapped.handle: "/a/b"}
    assert open_memory() == before + 1  # the daemon's own
    client.call(c.MunmapCube(mapped.handle))
    assert open_memory() == before


def test_a_reply_that_is_none_is_reported_and_survived(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    def nonsense(daemon: FakeDaemon, incoming: Incoming) -> None:
        daemon.send_frame(incoming, b"\xc1 nonsense")

    def wrong_body(daemon: FakeDaemon, incoming: Incoming) -> None:
        daemon.reply(incoming, c.PinReply(handle=3))

    daemon.script("info", nonsense, wrong_body)
    for _ in range(2):
        with pytest.raises(MemError) as raised:
            client.info()
        assert errno_of(raised) is Errno.EBADMSG
    assert client.write("/a/b", "x").version == 1


def test_an_unknown_errno_becomes_eio(client: libmem.Client, daemon: FakeDaemon) -> None:
    def from_the_future(daemon: FakeDaemon, incoming: Incoming) -> None:
        daemon.send_frame(incoming, b"\x94%c\x01\xcd\x27\x0f\x81\xa7message\xa3new" % incoming.seq)

    daemon.script("sync", from_the_future)
    with pytest.raises(MemError, match="errno 9999: new") as raised:
        client.sync()
    assert errno_of(raised) is Errno.EIO


def test_a_message_that_is_too_large_is_not_sent(client: libmem.Client, daemon: FakeDaemon) -> None:
    with pytest.raises(MemError) as raised:
        client.batch([c.WriteCube("/a/b", bytes(3 << 20)), c.WriteCube("/a/c", bytes(3 << 20))])
    assert errno_of(raised) is Errno.EMSGSIZE
    assert daemon.count("batch") == 0


def test_a_closed_client_says_so(client: libmem.Client) -> None:
    client.close()
    client.close()
    with pytest.raises(MemError, match="closed") as raised:
        client.info()
    assert errno_of(raised) is Errno.EBADF


@pytest.mark.parametrize("is_closed", [True, False])
def test_the_end_of_a_client_ends_its_session(daemon: FakeDaemon, is_closed: bool) -> None:
    client = libmem.connect(daemon.runtime_dir)
    assert len(daemon.live_sessions()) == 1
    if is_closed:
        client.close()
    else:
        del client
    daemon.wait_for(lambda: not daemon.live_sessions())


def test_a_dropped_client_leaves_no_unclaimed_descriptor_open(
    daemon: FakeDaemon, open_memory: Callable[[], int]
) -> None:
    def descriptor_without_reply(daemon: FakeDaemon, incoming: Incoming) -> None:
        session = daemon.sessions[incoming.routing_id]
        granted = daemon.kernel.perform(session, incoming.args)
        assert isinstance(granted, c.MapReply)
        daemon.send_descriptor(session, granted.handle)

    before = open_memory()
    client = libmem.connect(daemon.runtime_dir)
    client.write("/a/b", "x")
    daemon.script("mmap_cube", descriptor_without_reply)
    with pytest.raises(MemError):
        client.call(c.MmapCube("/a/b"), timeout_s=0.02)
    daemon.wait_for(lambda: daemon.count("mmap_cube") == 1)
    client.info()
    assert open_memory() == before + 2  # the daemon's, and the client's that nobody claims
    del client
    daemon.wait_for(lambda: not daemon.live_sessions())
    assert open_memory() == before


def test_threads_share_a_client(client: libmem.Client, daemon: FakeDaemon) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                name = f"/t/{number}"
                client.write(name, f"{turn}")
                assert client.read(name) == str(turn).encode()
                with client.map(name) as mapping:
                    assert bytes(mapping) == str(turn).encode()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(daemon.live_sessions()) == 1
    daemon.wait_for(lambda: daemon.live_sessions()[0].handles == 0)


def test_a_thread_that_waits_its_turn_times_out_too(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    daemon.script("sync", hold)
    slow = threading.Thread(target=client.sync)
    slow.start()
    daemon.wait_for(lambda: daemon.count("sync") == 1)
    with pytest.raises(MemError) as raised:
        client.call(c.Info(), timeout_s=0.02)
    assert errno_of(raised) is Errno.ETIMEDOUT
    daemon.release_held()
    slow.join()
    assert daemon.count("info") == 0


def test_what_another_thread_closes_in_a_call_is_sent_after_it(
    client: libmem.Client, daemon: FakeDaemon
) -> None:
    client.write("/a/b", "x")
    mapping = client.map("/a/b")
    daemon.script("sync", hold)
    slow = threading.Thread(target=client.sync)
    slow.start()
    daemon.wait_for(lambda: daemon.count("sync") == 1)
    mapping.close()
    assert daemon.count("munmap_cube") == 0
    daemon.release_held()
    slow.join()
    daemon.wait_for(lambda: daemon.count("munmap_cube") == 1)


def test_options_are_the_requests_fields() -> None:
    def optional(request: type) -> set[str]:
        fields = get_type_hints(request).keys() - {"name", "payload", "size_bytes", "query"}
        return {name for name in fields if not name.startswith("__")}

    assert get_type_hints(CubeOptions).keys() == optional(c.WriteCube) == optional(c.CreateCube)
    assert get_type_hints(HeaderGroups).keys() == optional(c.SetHeader)
    assert get_type_hints(SearchOptions).keys() == optional(c.Search)


@pytest.mark.parametrize(
    "request_",
    [
        c.StatCube("/a/\udcff"),
        c.UnlinkCube("/a/b", expected_version=1 << 64),
        c.SetHeader("/a/b", attributes={"mine": object()}),
    ],
    ids=["half a character", "a number too large", "a type of one's own"],
)
def test_what_cannot_be_sent_is_refused_and_the_client_goes_on(
    client: libmem.Client, request_: c.Call[Any]
) -> None:
    with pytest.raises(MemError, match="cannot be sent") as raised:
        client.call(request_)
    assert errno_of(raised) is Errno.EINVAL
    assert client.info().server == "fake"


@pytest.mark.parametrize("value", ["\udcff", object(), 1 << 64], ids=["half", "own", "large"])
def test_a_batch_with_what_cannot_be_sent_is_refused_whole(
    client: libmem.Client, daemon: FakeDaemon, value: object
) -> None:
    fine = c.WriteCube("/a/b", b"x")
    with pytest.raises(MemError, match="cannot be sent") as raised:
        client.batch([fine, c.SetHeader("/a/b", attributes={"mine": value})])
    assert errno_of(raised) is Errno.EINVAL
    assert daemon.count("batch") == 0
    assert client.info().server == "fake"


@pytest.mark.parametrize("timeout_s", [math.inf, math.nan, -1.0, 1e7])
def test_a_time_out_that_cannot_be_waited_is_refused(
    client: libmem.Client, daemon: FakeDaemon, timeout_s: float
) -> None:
    with pytest.raises(MemError, match="timeout_s is within") as raised:
        libmem.connect(daemon.runtime_dir, timeout_s=timeout_s)
    assert errno_of(raised) is Errno.EINVAL
    with pytest.raises(MemError, match="timeout_s is within"):
        client.call(c.Info(), timeout_s=timeout_s)
    assert client.call(c.Info(), timeout_s=TIMEOUT_MAX_S).server == "fake"
    assert daemon.count("info") == 1


def test_a_watch_without_end_may_be_asked_for(client: libmem.Client) -> None:
    client.write("/a/b", "x")
    assert next(client.watch("/a", since_seq=0, timeout_s=math.inf)).name == "/a/b"


def test_a_sibling_waits_for_nobody(client: libmem.Client, daemon: FakeDaemon) -> None:
    with client._lock, client.sibling(timeout_s=5) as other:
        assert other.info().server == "fake"
        assert len(daemon.live_sessions()) == 2
    assert client.info().server == "fake"

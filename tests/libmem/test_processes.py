"""Clients in other processes: what an import loads, forks, pools, and too few descriptors.

Each script is a process of its own, so that the scripted daemon, which lives in the test's, is
not forked along with it.
"""

import json

from tests.libmem.fake_daemon import FakeDaemon
from tests.libmem.script import run_script, start_script


def test_the_import_is_light() -> None:
    loaded = set(
        json.loads(run_script("import json, sys, libmem; print(json.dumps([*sys.modules]))"))
    )
    assert {"zmq", "msgspec", "libmem.client"} <= loaded
    frameworks = {"numpy", "torch", "transformers", "asyncio", "multiprocessing", "blake3"}
    the_daemons = {"lmdb", "sqlite3", "structlog", "psutil", "typer", "rich", "memosd"}
    assert not loaded & (frameworks | the_daemons | {"libmem.aio", "zmq.asyncio"})


def test_a_forked_child_has_a_session_of_its_own(daemon: FakeDaemon) -> None:
    source = """
import os, sys, libmem
client = libmem.connect(sys.argv[1])
client.write("/a/b", "parent")
pid = os.fork()
if pid == 0:
    assert client.read("/a/b") == b"parent"
    client.write("/a/c", "child")
    client.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert client.read("/a/c") == b"child"
print(client.epoch)
"""
    assert run_script(source, daemon.runtime_dir) == "1\n"
    hellos = [call.routing_id for call in daemon.calls if call.name == "hello"]
    writers = [call.routing_id for call in daemon.calls if call.name == "write_cube"]
    assert hellos == writers
    assert len(set(hellos)) == 2


def test_a_child_does_not_keep_its_parents_session_alive(daemon: FakeDaemon) -> None:
    source = """
import os, sys, libmem
client = libmem.connect(sys.argv[1])
if os.fork() == 0:
    sys.stdin.read()  # outlives the parent
os._exit(0)
"""
    with start_script(source, daemon.runtime_dir) as process:
        daemon.wait_for(lambda: daemon.count("hello") == 1)
        daemon.wait_for(lambda: not daemon.live_sessions())
        assert process.stdin is not None
        process.stdin.close()  # only now does the child end


def test_an_inherited_mapping_is_read_and_closed_without_the_parents_loss(
    daemon: FakeDaemon,
) -> None:
    source = """
import gc, os, sys, libmem
client = libmem.connect(sys.argv[1])
client.write("/a/b", "memory")
mapping, pin, fill = client.map("/a/b"), client.pin("/a/b"), client.create("/a/f", 10)
fill.buffer[:5] = b"begun"
pid = os.fork()
if pid == 0:
    assert bytes(mapping) == b"memory" and mapping.is_stale and not pin.is_held
    mapping.close()
    pin.release()
    try:
        fill.seal()
    except libmem.MemError as error:
        assert error.errno is libmem.Errno.ESTALE
    fill.abort()
    client.info()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert not mapping.is_stale and pin.is_held
assert fill.seal().version == 1
print(client.read("/a/f")[:5].decode())
sys.stdin.read()
"""
    with start_script(source, daemon.runtime_dir) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert daemon.count("abort_cube") == daemon.count("munmap_cube") == 0
        assert daemon.live_sessions()[0].handles == 2
        process.communicate()


def test_a_fork_in_the_middle_of_another_threads_call(daemon: FakeDaemon) -> None:
    source = """
import os, sys, threading, libmem
client = libmem.connect(sys.argv[1])
events = client.watch("/", since_seq=0)
waiting = threading.Thread(target=client.sync)
waiting.start()
while not client._lock.locked():
    pass
pid = os.fork()
if pid == 0:
    print(client.write("/a/b", "child").version, flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(next(events).name)
waiting.join()
"""
    daemon.script("sync", lambda fake, incoming: fake.hold(incoming))
    with start_script(source, daemon.runtime_dir) as process:
        daemon.wait_for(lambda: daemon.count("write_cube") == 1)
        daemon.wait_for(lambda: daemon.count("sync") == 1)
        daemon.release_held()
        output, errors = process.communicate()
    assert (output, errors) == ("1\n/a/b\n", "")


def test_generations_and_dropped_clients(daemon: FakeDaemon) -> None:
    source = """
import gc, os, sys, libmem
client = libmem.connect(sys.argv[1])
for generation in range(3):
    if os.fork():
        assert os.wait()[1] == 0
        client.info()
        sys.exit()  # an orderly end of the interpreter, in every generation
    client.write(f"/a/{generation}", "x")
del client
gc.collect()
print("last")
"""
    assert run_script(source, daemon.runtime_dir) == "last\n"
    daemon.wait_for(lambda: not daemon.live_sessions())
    assert daemon.count("write_cube") == 3


def test_pools_of_processes(daemon: FakeDaemon) -> None:
    source = """
import multiprocessing, sys
import libmem
from tests.libmem import workers
client = workers.inherited = libmem.connect(sys.argv[1])
names = [f"/a/{number}" for number in range(12)]
for name in names:
    client.write(name, name)
jobs = [(sys.argv[1], name) for name in names]
for method in ("fork", "spawn"):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.starmap(workers.read, jobs) == [name.encode() for name in names]
try:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.starmap(workers.fail, jobs[:1])
except libmem.MemError as error:
    print(error.errno.name, error.detail)
"""
    assert run_script(source, daemon.runtime_dir) == "ENOENT {'cube': '/a/none'}\n"


def test_threads_each_with_a_client(daemon: FakeDaemon) -> None:
    source = """
import sys, threading, libmem
def work(number):
    with libmem.connect(sys.argv[1]) as client:
        for turn in range(10):
            client.write(f"/t/{number}", str(turn))
            assert client.read(f"/t/{number}") == str(turn).encode()
threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    assert run_script(source, daemon.runtime_dir) == ""
    assert daemon.count("hello") == 32
    assert all(len(versions) == 10 for versions in daemon.kernel.cubes.values())
    daemon.wait_for(lambda: not daemon.live_sessions())


def test_too_few_descriptors_are_reported_and_survived(daemon: FakeDaemon) -> None:
    source = """
import os, resource, sys, libmem
client = libmem.connect(sys.argv[1])
client.write("/a/b", "memory")
client.map("/a/b").close()
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
held = []
for room in (1, 0):  # the last descriptor is received, but Python's mmap wants one more
    try:
        while True:
            held.append(client.map("/a/b"))
    except libmem.MemError as error:
        print(error.errno.name)
    if room:
        filler = os.dup(0)
held.pop().close()
held.pop().close()
print(bytes(client.map("/a/b")).decode())
client.info()
print(len(held))
sys.stdin.read()
"""
    with start_script(source, daemon.runtime_dir) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(4)]
        assert lines[:3] == ["EMFILE", "EMFILE", "memory"]
        assert daemon.live_sessions()[0].handles == int(lines[3])
        process.communicate()


def test_a_killed_client_is_gone(daemon: FakeDaemon) -> None:
    source = """
import sys, libmem
client = libmem.connect(sys.argv[1])
client.write("/a/b", "x")
held = client.map("/a/b"), client.pin("/a/b"), client.create("/a/c", 10)
print("holding", flush=True)
sys.stdin.read()
"""
    with start_script(source, daemon.runtime_dir) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        assert daemon.live_sessions()[0].handles == 3
        process.kill()
        daemon.wait_for(lambda: not daemon.live_sessions())

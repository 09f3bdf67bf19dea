"""The machine's memory as files tell it: absent, odd and hostile files included."""

import os
import select
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libmem.abi.errors import Errno, MemError
from memosd import machine as module
from memosd.kernel.machine import Bound
from memosd.machine import SystemMachine

KIB = 1024
TOTAL = 1000 * KIB * KIB
MEMINFO = f"""MemTotal:       {TOTAL // KIB} kB
MemFree:            7 kB
MemAvailable:   {TOTAL // 4 // KIB} kB
"""
STALLS = """some avg10=1.25 avg60=0.50 avg300=0.10 total=4321
full avg10=0.75 avg60=0.25 avg300=0.05 total=1234
"""


class FakeLoop:
    """Keeps what is to be watched."""

    def __init__(self) -> None:
        self.watched: dict[int, tuple[Callable[[], None], int]] = {}

    def watch(self, fd: int, action: Callable[[], None], events: int) -> None:
        self.watched[fd] = action, events

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]


class Tree:
    """Files in the place of /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.loop = FakeLoop()
        self.machine = SystemMachine(self.loop, self.proc, self.cgroups)
        self.put("proc/meminfo", MEMINFO)
        self.put("proc/pressure/memory", STALLS)

    def put(self, path: str, text: str | int) -> None:
        file = self.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n" if isinstance(text, int) else text, encoding="utf-8")

    def group(self, path: str, **files: str | int) -> None:
        """A cgroup's files, `memory.` left out of their names."""
        for name, text in files.items():
            self.put(f"cgroup/{path}/memory.{name}", text)

    def bounds(self) -> dict[str, Bound]:
        return {bound.name: bound for bound in self.machine.read().bounds}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_the_machine_alone(tree: Tree) -> None:
    memory = tree.machine.read()
    assert memory.total_bytes == TOTAL
    assert memory.bounds == (Bound("machine", TOTAL, TOTAL // 4),)
    assert (memory.some_avg10, memory.full_avg10, memory.some_total_us) == (1.25, 0.75, 4321)


def test_the_limits_of_our_cgroup_and_those_above(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "0::/a/b\n")
    stat = "anon 1\nfile 700\ninactive_file 100\nactive_file 20\nslab_reclaimable 3\nshmem 600\n"
    tree.group("a/b", high=10_000, max=20_000, current=9_000, stat=stat)
    tree.group("a", high="max\n", max=50_000, current=10_000)
    assert tree.bounds() == {
        "machine": Bound("machine", TOTAL, TOTAL // 4),
        "memory.high of a/b": Bound("memory.high of a/b", 10_000, 1_123, 600),
        "memory.max of a": Bound("memory.max of a", 50_000, 40_000, 0),
    }


def test_a_limit_may_be_passed(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "0::/a\n")
    tree.group("a", high=10_000, current=12_000)
    assert tree.bounds()["memory.high of a"].available_bytes == -2_000


def test_version_1(tree: Tree) -> None:
    lines = "9:name=systemd:/\n4:cpu,memory:/x\n0::/\n"
    tree.put("proc/self/cgroup", lines)
    stat = "total_inactive_file 10\ntotal_active_file 5\ntotal_shmem 900\ninactive_file 7000\n"
    tree.group("memory/x", limit_in_bytes=4_000, usage_in_bytes=3_000, stat=stat)
    tree.group("memory", limit_in_bytes=9223372036854771712, usage_in_bytes=9_000)
    bound = tree.bounds()["memory.limit_in_bytes of memory/x"]
    assert bound[1:] == (4_000, 1_015, 900)
    assert len(tree.bounds()) == 2, "what is above the machine's memory bounds nothing"


def test_our_own_groups_stalls_come_before_the_machines(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "0::/a\n")
    tree.group("a", pressure=STALLS.replace("4321", "99"))
    assert tree.machine.read().some_total_us == 99


@pytest.mark.parametrize(
    "files",
    [
        {"current": 1},
        {"high": 5_000},
        {"high": 0, "current": 1},
        {"high": -5, "current": 1},
        {"high": "", "current": 1},
        {"high": "a\x00b", "current": 1},
        {"high": 5_000, "current": -3},
        {"high": 5_000, "current": "12 13"},
        {"max": 10**30, "current": 1},
        {"max": "7" * 5000, "current": 1},
    ],
)
def test_a_group_that_tells_nothing_bounds_nothing(tree: Tree, files: dict[str, str | int]) -> None:
    tree.put("proc/self/cgroup", "0::/a\n")
    tree.group("a", **files)
    assert list(tree.bounds()) == ["machine"]


@pytest.mark.parametrize("text", ["", "nonsense", "1:2", "0::", "::::", "0::/../../etc\n", "\xff"])
def test_odd_lines_about_groups(tree: Tree, text: str) -> None:
    tree.put("proc/self/cgroup", text)
    assert list(tree.bounds()) == ["machine"]


@pytest.mark.parametrize(
    "text", ["", "some\n", "some avg10=x total=1\n", "some avg10=1.0 avg60=2 total=-4\n"]
)
def test_without_figures_there_are_no_stalls(tree: Tree, text: str) -> None:
    tree.put("proc/pressure/memory", text)
    memory = tree.machine.read()
    assert (memory.some_avg10, memory.some_total_us) == (0.0, 0)
    (tree.proc / "pressure/memory").unlink()
    assert tree.machine.read().some_total_us == 0


def test_unreadable_files_are_as_absent_ones(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "0::/a\n")
    (tree.cgroups / "a/memory.high").mkdir(parents=True)
    (tree.cgroups / "a/memory.current").mkdir()
    assert list(tree.bounds()) == ["machine"]


def test_without_meminfo_psutil_tells(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.proc / "meminfo").unlink()
    told = SimpleNamespace(total=500, available=70)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: told)
    assert tree.machine.read().bounds == (Bound("machine", 500, 70),)


@pytest.mark.parametrize(("total", "available"), [(0, 0), (10, 11), (10, -1)])
def test_absurd_figures_are_an_error(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, total: int, available: int
) -> None:
    (tree.proc / "meminfo").unlink()
    told = SimpleNamespace(total=total, available=available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: told)
    with pytest.raises(MemError, match="cannot be told") as caught:
        tree.machine.read()
    assert caught.value.errno is Errno.EIO


def test_a_psutil_that_fails_is_an_error(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FileNotFoundError("/proc/meminfo")

    (tree.proc / "meminfo").unlink()
    monkeypatch.setattr(psutil, "virtual_memory", fail)
    with pytest.raises(MemError, match="cannot be told"):
        tree.machine.read()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
@given(text=st.text(max_size=200))
def test_no_text_of_a_file_surprises(tree: Tree, text: str) -> None:
    tree.put("proc/self/cgroup", "0::/a\n")
    for name in ("high", "max", "current", "stat", "pressure"):
        tree.group("a", **{name: text})
    tree.put("proc/self/cgroup", text + "\n0::/a\n")
    for bound in tree.machine.read().bounds:
        assert bound.limit_bytes > 0


# -- triggers ------------------------------------------------------------------------------------


def test_without_permission_it_is_looked_at(tree: Tree) -> None:
    (tree.proc / "pressure/memory").unlink()
    tree.machine.arm()
    assert not tree.machine.is_triggered
    assert tree.loop.watched == {}
    tree.machine.close()


def test_a_trigger_that_the_kernel_takes(tree: Tree) -> None:
    tree.machine.arm()
    assert tree.machine.is_triggered
    assert (tree.proc / "pressure/memory").read_bytes().startswith(b"some 150000 1000000\0")
    [(action, events)] = tree.loop.watched.values()
    assert events == select.EPOLLPRI
    fired: list[bool] = []
    tree.machine.on_pressure = lambda: fired.append(True)
    action()
    assert fired == [True]
    tree.machine.close()
    tree.machine.close()
    assert not tree.machine.is_triggered


def test_a_trigger_that_fails_is_given_up(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its cgroup is removed: the error would be told for ever."""
    reading, writing = os.pipe()
    monkeypatch.setattr(module, "_armed", lambda path, trigger: writing)
    tree.machine.arm()
    fired: list[bool] = []
    tree.machine.on_pressure = lambda: fired.append(True)
    os.close(reading)
    [(action, _)] = tree.loop.watched.values()
    action()
    assert tree.loop.watched == {}
    assert not tree.machine.is_triggered
    assert fired == [True], "looked at all the same"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(writing)


def test_linux_takes_one_of_our_triggers() -> None:
    if not os.access("/proc/pressure/memory", os.W_OK):
        pytest.skip("this kernel tells no pressure")
    loop = FakeLoop()
    machine = SystemMachine(loop)
    machine.arm()
    assert machine.is_triggered == bool(loop.watched)
    memory = machine.read()
    assert 0 < memory.bounds[0].available_bytes <= memory.total_bytes
    machine.close()

"""The system files: systemd accepts them, they agree with the defaults, and the filter fits.

Each check uses systemd's own programs on copies; nothing of the machine changes.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from libmem.abi.errors import Errno
from memosd.config import Config

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "etc/memosd.service"
SANDBOX = Path(__file__).with_name("sandbox.py")

# systemd's score runs from 0 (closed) to 10; the option takes tenths.
EXPOSURE_MAX_TENTHS = 15

# Both roads and the store, each as memosd uses it.
ROADS = """
import fcntl, lmdb, mmap, os, select, socket, sqlite3, sys, zmq
home = sys.argv[1]
context = zmq.Context()
server, client = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
server.bind(f"ipc://{home}/control")
os.chmod(f"{home}/control", 0o660)
client.connect(f"ipc://{home}/control")
client.send(b"stat")
frame = server.recv_multipart(copy=False)[-1]
assert frame.get("Peer-Address").endswith(f"{os.getuid()}:{os.getgid()}:{os.getpid()}")
left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
memory = os.memfd_create("cube", os.MFD_ALLOW_SEALING)
os.write(memory, b"cube")
fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
socket.send_fds(left, [b"f"], [memory])
received = socket.recv_fds(right, 16, 1)[1][0]
with mmap.mmap(received, 4, prot=mmap.PROT_READ) as mapped:
    assert mapped[:] == b"cube"
with lmdb.open(f"{home}/table", map_size=1 << 30) as table, table.begin(write=True) as write:
    write.put(b"key", b"value")
index = sqlite3.connect(f"{home}/index")
index.execute("CREATE VIRTUAL TABLE words USING fts5(text)")
index.close()
context.destroy(linger=0)
try:
    trigger = os.open("/proc/pressure/memory", os.O_RDWR | os.O_NONBLOCK)
except OSError:
    pass  # not every kernel has it, nor lets everybody
else:
    os.write(trigger, b"some 150000 2000000\\0")
    select.epoll().register(trigger, select.EPOLLPRI)
print("through")
"""

# What the daemon does to start a worker, and what a worker does.
WORKER = """
import ctypes, os, resource, select, signal, subprocess, threading
child = subprocess.Popen(["true"], process_group=0)
select.select([os.pidfd_open(child.pid)], [], [])
assert child.wait() == 0
assert ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0) == 0
with open("/proc/self/oom_score_adj", "w") as score:
    score.write("1000")
resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
import torch
for dtype in (torch.float32, torch.bfloat16):
    layer = torch.nn.Linear(64, 64, dtype=dtype)
    torch.nn.functional.gelu(layer(torch.ones(8, 64, dtype=dtype)))
print("through")
"""


def systemd(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of systemd; skips where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run(
        [path, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """A copy of the unit whose program exists here."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    assert "ExecStart=/usr/bin/memosd " in text
    copy.write_text(text.replace("/usr/bin/memosd", sys.executable), encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def directives() -> dict[str, str]:
    """The unit's [Service] section; of a repeated key, the last line."""
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return dict(parser["Service"])


def test_systemd_accepts_the_unit_without_a_word(unit: Path) -> None:
    done = systemd("systemd-analyze", "verify", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_is_confined(unit: Path) -> None:
    done = systemd(
        "systemd-analyze",
        "security",
        "--no-pager",
        "--offline=true",
        f"--threshold={EXPOSURE_MAX_TENTHS}",
        unit,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_makes_the_directories_that_the_defaults_name(directives: dict[str, str]) -> None:
    assert Config().listen.runtime_dir == Path("/run") / directives["RuntimeDirectory"]
    assert Config().store.data_dir == Path("/var/lib") / directives["StateDirectory"]


def test_the_unit_has_a_descriptor_for_every_session(directives: dict[str, str]) -> None:
    limits = Config().limits
    assert int(directives["LimitNOFILE"]) > 2 * limits.sessions + limits.handles_per_session


def test_a_damaged_table_is_not_read_over_and_over(directives: dict[str, str]) -> None:
    assert int(directives["RestartPreventExitStatus"]) == Errno.ECORRUPT


def test_user_group_and_directories_are_made(tmp_path: Path, directives: dict[str, str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may make users and give files away")
    (tmp_path / "etc").mkdir()
    users = systemd("systemd-sysusers", f"--root={tmp_path}", ROOT / "etc/memosd.sysusers")
    assert users.returncode == 0, users.stderr
    assert f"{directives['User']}:" in (tmp_path / "etc/passwd").read_text(encoding="utf-8")
    assert f"{directives['Group']}:" in (tmp_path / "etc/group").read_text(encoding="utf-8")
    made = systemd(
        "systemd-tmpfiles", "--create", f"--root={tmp_path}", ROOT / "etc/memosd.tmpfiles"
    )
    assert made.returncode == 0, made.stderr
    for path, mode in (
        (Config().listen.runtime_dir, directives["RuntimeDirectoryMode"]),
        (Config().store.data_dir, directives["StateDirectoryMode"]),
    ):
        folder = tmp_path / path.relative_to("/")
        assert folder.stat().st_mode & 0o7777 == int(mode, 8)


@pytest.mark.parametrize("program", [ROADS, WORKER], ids=["roads", "worker"])
def test_what_memosd_does_works_under_the_units_filter(tmp_path: Path, program: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    if program is WORKER and find_spec("torch") is None:
        pytest.skip("torch is not installed")
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed")
    done = subprocess.run(
        [sys.executable, SANDBOX, UNIT, sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "through\n"), done.stderr

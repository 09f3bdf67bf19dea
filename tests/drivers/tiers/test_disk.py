"""The disk tier over crashes, full disks and damage."""

import errno
import os
from pathlib import Path

import pytest

from libmem.abi import failpoints
from libmem.abi.digest import digest_of, manifest_of
from libmem.abi.errors import Errno
from libmem.abi.limits import PAGE_BYTES
from memosd.drivers.tiers.disk import DiskTier
from tests.drivers.memory import Memory, in_tiny_file_system, python, raises

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

KEY = bytes.fromhex("00112233445566778899aabbccddeeff")
NAME = "00112233445566778899aabbccddeeff.page"
CONTENT = b"words " * 50_000
BEFORE_RENAME = ["page.write.before", "page.write.half", "page.fsync.before", "page.rename.before"]
POINTS = [*BEFORE_RENAME, "page.rename.after"]
BLOCKS = ["page.blocks.before", "page.blocks.between"]

CHILD = """
import os, sys
from pathlib import Path
from libmem.abi.digest import manifest_of
from memosd.drivers.tiers.disk import DiskTier
content = sys.argv[2].encode() * 50_000
fd = os.memfd_create("source")
os.write(fd, content)
key = bytes.fromhex("00112233445566778899aabbccddeeff")
DiskTier(Path(sys.argv[1])).store(key, fd, manifest_of(content))
"""


@pytest.fixture
def disk(tmp_path: Path) -> DiskTier:
    """An empty tier."""
    return DiskTier(tmp_path)


@pytest.fixture
def file(disk: DiskTier, memory: Memory, tmp_path: Path) -> Path:
    """The page file of CONTENT under KEY."""
    disk.store(KEY, memory.holding(CONTENT), manifest_of(CONTENT))
    return tmp_path / "pages" / "ff" / NAME


def files_below(directory: Path) -> list[str]:
    """The names of all files in the tier's folders."""
    return sorted(path.name for path in (directory / "pages").rglob("*") if path.is_file())


def verify(disk: DiskTier) -> None:
    disk.verify(KEY, len(CONTENT), digest_of(CONTENT))


def test_the_file_lies_where_the_format_says(file: Path, disk: DiskTier) -> None:
    assert file.read_bytes().startswith(CONTENT)
    assert file.stat().st_size == disk.charge_bytes(len(CONTENT))
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_payloads_outlive_the_tier(file: Path, tmp_path: Path) -> None:
    again = DiskTier(tmp_path)
    assert list(again.keys()) == [KEY]
    verify(again)


def test_strangers_are_passed_over(file: Path, disk: DiskTier, tmp_path: Path) -> None:
    for name in [
        "README",
        ".hidden",
        "x.page",
        NAME + "~",
        NAME.upper(),
        NAME.replace("00", "0"),
        "0" + NAME,
        "0" * 32 + ".page",  # belongs into another folder
    ]:
        (file.parent / name).touch()
    (tmp_path / "pages" / "notes").mkdir()
    assert list(disk.keys()) == [KEY]
    assert disk.remove_leftovers() == 0
    assert len(files_below(tmp_path)) == 9


def test_nothing_counts_before_it_is_synced(
    disk: DiskTier, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def seen_fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        steps.append(f"sync {'folder ' + path.name if path.is_dir() else 'file'}")
        fsync(fd)

    def seen_rename(old: str, new: str) -> None:
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "rename", seen_rename)
    disk.store(KEY, memory.holding(CONTENT), manifest_of(CONTENT))
    assert steps == ["sync file", "rename", "sync folder ff"]


def test_the_folders_are_synced_before_the_first_payload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def seen_fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    DiskTier(tmp_path)
    assert synced == [f"{tmp_path}/pages", str(tmp_path)]
    assert len(os.listdir(tmp_path / "pages")) == 256
    (tmp_path / "pages" / "07").rmdir()
    DiskTier(tmp_path)  # one that is missing comes back
    assert (tmp_path / "pages" / "07").is_dir()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("has_old", [False, True])
def test_a_crash_leaves_all_or_nothing(tmp_path: Path, point: str, has_old: bool) -> None:
    if has_old:
        assert python(CHILD, str(tmp_path), "older ").returncode == 0
    crashed = python(CHILD, str(tmp_path), "words ", failpoints=f"{point}=exit")
    assert crashed.returncode == failpoints.EXIT_STATUS, crashed.stderr
    disk = DiskTier(tmp_path)
    assert disk.remove_leftovers() == (point in BEFORE_RENAME)
    survivor = b"words " * 50_000 if point not in BEFORE_RENAME else b"older " * 50_000
    if point in BEFORE_RENAME and not has_old:
        assert files_below(tmp_path) == []
    else:
        assert list(disk.keys()) == [KEY]
        disk.verify(KEY, len(survivor), digest_of(survivor))
        assert files_below(tmp_path) == [NAME]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(("action", "expected"), [("enospc", Errno.ENOSPC), ("eio", Errno.EIO)])
def test_a_failed_write_leaves_nothing(
    disk: DiskTier, memory: Memory, point: str, action: str, expected: Errno
) -> None:
    failpoints.arm(f"{point}={action}")
    with raises(expected):
        disk.store(KEY, memory.holding(CONTENT), manifest_of(CONTENT))
    assert list(disk.keys()) == []
    assert disk.remove_leftovers() == 0
    failpoints.disarm()
    disk.store(KEY, memory.holding(CONTENT), manifest_of(CONTENT))
    verify(disk)


@pytest.mark.parametrize("point", BLOCKS)
@pytest.mark.parametrize(("action", "expected"), [("enospc", Errno.ENOSPC), ("eio", Errno.EIO)])
def test_blocks_that_cannot_be_written_leave_nothing(
    disk: DiskTier, point: str, action: str, expected: Errno
) -> None:
    failpoints.arm(f"{point}={action}")
    with raises(expected):
        disk.store_blocks(KEY, [CONTENT[:1000], CONTENT[1000:]])
    assert list(disk.keys()) == []
    assert disk.remove_leftovers() == 0
    failpoints.disarm()
    disk.store_blocks(KEY, [CONTENT[:1000], CONTENT[1000:]])
    verify(disk)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_the_disks_own_errors_are_eio(
    disk: DiskTier, memory: Memory, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with raises(Errno.EIO) as caught:
        disk.store(KEY, memory.holding(CONTENT), manifest_of(CONTENT))
    assert NAME in caught.value.message
    assert files_below(tmp_path) == []


def test_a_disk_that_is_really_full_says_enospc() -> None:
    filled = in_tiny_file_system(
        """
import os
from pathlib import Path
from libmem.abi.digest import manifest_of
from libmem.abi.errors import Errno, MemError
from memosd.drivers.tiers.disk import DiskTier
disk = DiskTier(Path("/mnt"))
small, large = b"s" * 100_000, b"l" * 1_000_000
fds = [os.memfd_create("source") for _ in range(2)]
os.write(fds[0], small)
os.write(fds[1], large)
disk.store(b"1" * 16, fds[0], manifest_of(small))
try:
    disk.store(b"2" * 16, fds[1], manifest_of(large))
except MemError as error:
    print(error.errno.name)
assert list(disk.keys()) == [b"1" * 16]
assert disk.remove_leftovers() == 0
disk.verify(b"1" * 16, len(small), manifest_of(small).digest)
disk.store(b"3" * 16, fds[0], manifest_of(small))
""",
        1 << 20,
    )
    assert (filled.stdout, filled.returncode) == ("ENOSPC\n", 0), filled.stderr


@pytest.mark.parametrize("at", [0, 299_999, -1, -40, -33])
def test_a_flipped_bit_is_never_served(file: Path, disk: DiskTier, memory: Memory, at: int) -> None:
    image = bytearray(file.read_bytes())
    image[at] ^= 0x40
    file.write_bytes(image)
    with raises(Errno.ECORRUPT):
        verify(disk)
    with raises(Errno.ECORRUPT):
        disk.load(KEY, memory.blank(len(CONTENT)), len(CONTENT), digest_of(CONTENT))


def test_the_page_at_fault_is_named(disk: DiskTier, memory: Memory, tmp_path: Path) -> None:
    content = os.urandom(3 * PAGE_BYTES)
    disk.store(KEY, memory.holding(content), manifest_of(content))
    fd = os.open(tmp_path / "pages" / "ff" / NAME, os.O_WRONLY)
    os.pwrite(fd, b"damage", 2 * PAGE_BYTES + 10)
    os.close(fd)
    with raises(Errno.ECORRUPT) as caught:
        disk.load(KEY, memory.blank(len(content)), len(content), digest_of(content))
    assert caught.value.detail == {"page": 2}


def test_blocks_come_up_to_the_damaged_page_and_no_further(
    file: Path, disk: DiskTier, memory: Memory
) -> None:
    content = os.urandom(3 * PAGE_BYTES)
    disk.store(KEY, memory.holding(content), manifest_of(content))
    with file.open("r+b") as damaged:
        damaged.seek(PAGE_BYTES + 17)
        damaged.write(bytes([content[PAGE_BYTES + 17] ^ 1]))
    blocks = disk.blocks(KEY, len(content), digest_of(content))
    assert next(blocks) == content[:PAGE_BYTES]
    with raises(Errno.ECORRUPT) as caught:
        next(blocks)
    assert caught.value.detail == {"page": 1}


def test_damage_on_the_way_into_memory_is_found(
    file: Path, disk: DiskTier, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sendfile = os.sendfile

    def wrong(target: int, source: int, at: int, count: int) -> int:
        copied = sendfile(target, source, at, count)
        os.pwrite(target, b"?", at + copied - 1)
        return copied

    monkeypatch.setattr(os, "sendfile", wrong)
    with raises(Errno.ECORRUPT):
        disk.load(KEY, memory.blank(len(CONTENT)), len(CONTENT), digest_of(CONTENT))


@pytest.mark.parametrize("length", [0, 10, 4096, 299_000, -1])
def test_a_file_cut_short_is_never_served(file: Path, disk: DiskTier, length: int) -> None:
    image = file.read_bytes()
    file.write_bytes(image[:length])
    with raises(Errno.ECORRUPT):
        verify(disk)


def test_a_file_under_another_ones_name_is_never_served(file: Path, disk: DiskTier) -> None:
    other = bytes(15) + b"\x07"
    (file.parents[1] / "07" / f"{other.hex()}.page").write_bytes(file.read_bytes())
    with raises(Errno.ECORRUPT) as caught:
        disk.verify(other, len(CONTENT), digest_of(CONTENT))
    assert KEY.hex() in caught.value.message
    verify(disk)


def test_what_cannot_be_read_is_eio(file: Path, disk: DiskTier) -> None:
    file.unlink()
    file.mkdir()
    with raises(Errno.EIO):
        verify(disk)
    with raises(Errno.EIO):
        disk.free(KEY)


def test_a_directory_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "pages").write_text("a file")
    with raises(Errno.EIO) as caught:
        DiskTier(tmp_path)
    assert str(tmp_path / "pages") in caught.value.message

"""The configuration: the shipped file is the defaults, and every slip is refused in one line."""

import os
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from libmem.abi.errors import Errno, MemError
from memosd.config import (
    _EMBEDDER,
    Config,
    Models,
    Ram,
    Workers,
    check,
    defaults_for_user,
    load,
)
from memosd.kernel.policies.table import POLICIES
from memosd.machine import machine_memory_bytes
from memosd.tools.models.cache import STAMP
from memosd.tools.models.catalogue import CATALOGUE

MANUAL = Path(__file__).parents[2] / "etc/memosd.toml"
KEYS = [
    (table, key)
    for table in Config.__struct_fields__
    for key in getattr(Config(), table).__struct_fields__
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its configuration."""
    return tmp_path / "memosd.toml"


def refusal(file: Path, text: str) -> MemError:
    """The error that a file of `text` meets; always one line that names the file."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MemError) as caught:
        load(file)
    assert caught.value.errno is Errno.EINVAL
    assert caught.value.message.startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    return caught.value


def read(file: Path, text: str) -> Config:
    """What a file of `text` means."""
    file.write_text(text, encoding="utf-8")
    return load(file)


def test_the_shipped_file_is_exactly_the_defaults() -> None:
    assert load(MANUAL) == Config()


def test_the_shipped_file_mentions_every_key() -> None:
    tables = tomllib.loads(MANUAL.read_text(encoding="utf-8"))
    assert [(table, key) for table, rows in tables.items() for key in rows] == KEYS


def test_an_empty_file_is_the_defaults(file: Path) -> None:
    assert read(file, "") == Config()


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_a_misspelt_key_is_refused_with_its_nearest(file: Path, table: str, key: str) -> None:
    error = refusal(file, f"[{table}]\n{key[:-1]} = 1\n")
    assert error.message.endswith(f"unknown key {table}.{key[:-1]}; did you mean {table}.{key}?")
    assert error.detail == {"key": f"{table}.{key[:-1]}", "nearest": f"{table}.{key}"}


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("[rams]\npolicy = 'lru'", "table rams", "ram"),
        ("[ram]\nio_threads = 1", "key ram.io_threads", "store.io_threads"),
        ("io_threads = 1", "key io_threads", "store.io_threads"),
        ("[log]\n'le\\nvel' = 1", "key log.'le\\\\nvel'", "log.level"),
        ('[log]\n"le\\nvel" = 1', "key log.'le\\nvel'", "log.level"),
    ],
)
def test_a_misplaced_key_is_refused_with_its_place(
    file: Path, text: str, unknown: str, nearest: str
) -> None:
    assert refusal(file, text).message.endswith(f": unknown {unknown}; did you mean {nearest}?")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ram = 3", "ram: must be a table: write [ram]"),
        ("[[ram]]", "ram: must be a table: write [ram]"),
        ("[store]\nio_threads = true", "store.io_threads: expected int, got bool"),
        ("[store]\nio_threads = '3'", "store.io_threads: expected int, got str"),
        ("[store]\nio_threads = 0", "store.io_threads: expected int >= 1"),
        ("[store]\nio_threads = 99999999999999999999", "store.io_threads: expected int <= 64"),
        ("[listen]\nruntime_dir = 3", "listen.runtime_dir: expected str, got int"),
        (
            "[listen]\nruntime_dir = 'run'",
            "listen.runtime_dir: must be an absolute path, not 'run'",
        ),
        ("[listen]\nmode = '660'", 'listen.mode: expected an octal mode such as "0660"'),
        ("[device]\nname = 'gpu'", 'device.name: expected "none", "cpu", "cuda" or one such as'),
        ("[listen]\nmode = 0o660", "listen.mode: expected str, got int"),
        (
            "[log]\nlevel = 'loud'",
            "log.level: expected one of debug, info, warning, error; got 'loud'",
        ),
        ("[behaviour]\nheat_flush_s = inf", "behaviour.heat_flush_s: expected float <= 86400.0"),
        ("[ram]\nhigh_watermark = nan", "ram.high_watermark: expected float >= 0.01"),
        ("[ram]\nlow_watermark = 0.9", "ram.low_watermark: must be below ram.high_watermark"),
        ("[ram]\nlow_watermark = 0.95", "ram.low_watermark: must be below ram.high_watermark"),
        ("[disk]\nlow_watermark = 0.96", "disk.low_watermark: must be below disk.high_watermark"),
        ("[disk]\nwriteback_share = 0", "disk.writeback_share: expected float >= 0.01"),
        ("[ram]\nbudget_bytes = 0", "ram.budget_bytes: expected int >= 65536"),
        ("[disk]\nbudget_bytes = 0", "disk.budget_bytes: expected int >= 65536"),
        ("[disk]\ninline_limit_bytes = 65537", "disk.inline_limit_bytes: expected int <= 65536"),
        (
            "[disk]\nbudget_bytes = '9 %'",
            "takes no percentage; only ram.budget_bytes and ram.reserve_bytes do",
        ),
        ("[ram]\nbudget_bytes = '101%'", "'101%' is not a share of this machine's memory"),
        ("[ram]\nreserve_bytes = -1", "ram.reserve_bytes: expected int >= 0"),
        ("[ram]\nreserve_bytes = '100%'", "ram.reserve_bytes: must be less than this machine's"),
        ("[ram]\nbudget_bytes = '900 TiB'", "must fit this machine's memory"),
        ("[store", "not TOML: Expected ']' at the end of a table declaration"),
    ],
)
def test_a_value_that_cannot_serve_is_refused_with_its_key(
    file: Path, text: str, reason: str
) -> None:
    assert reason in refusal(file, text).message


@pytest.mark.parametrize(
    "size", ["", "4", "4 GB", "4 gib", "-1 MiB", "1e3 MiB", "٣ MiB", "9" * 20 + "B"]
)
def test_a_size_without_a_clear_meaning_is_refused(file: Path, size: str) -> None:
    error = refusal(file, f"[disk]\nbudget_bytes = '{size}'")
    assert f"disk.budget_bytes: {size!r} is not a size" in error.message


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [("65536", 65536), ("'4 GiB'", 4 << 30), ("'512MiB'", 512 << 20), ("' 1.5 MiB '", 3 << 19)],
)
def test_sizes_are_bytes_or_carry_their_unit(file: Path, size: str, size_bytes: int) -> None:
    assert read(file, f"[disk]\nbudget_bytes = {size}").disk.budget_bytes == size_bytes


def test_the_ram_budget_may_be_a_share_of_the_machine(file: Path) -> None:
    budget_bytes = read(file, "[ram]\nbudget_bytes = '50%'").ram.budget_bytes
    assert budget_bytes == machine_memory_bytes() // 2


def test_a_file_that_is_not_text_is_refused(file: Path) -> None:
    file.write_bytes(b"[log]\n# \xff\n")
    with pytest.raises(MemError, match="not UTF-8 at byte 8"):
        load(file)


def test_a_file_that_cannot_be_read_says_why(file: Path, tmp_path: Path) -> None:
    with pytest.raises(MemError, match="No such file") as missing:
        load(file)
    assert missing.value.errno is Errno.ENOENT
    with pytest.raises(MemError, match="Is a directory") as folder:
        load(tmp_path)
    assert folder.value.errno is Errno.EIO


def test_modes_are_octal() -> None:
    assert Config().listen.mode_bits == 0o660
    assert Config().namespaces.default_mode_bits == 0o700


def test_a_user_gets_directories_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("XDG_DATA_HOME", "/home/ann/data")
    config = defaults_for_user()
    assert config.listen.runtime_dir == Path("/run/user/7/memosd")
    assert config.listen.mode_bits == 0o600
    assert config.store.data_dir == Path("/home/ann/data/memosd")
    assert config.disk == Config().disk


def test_a_user_without_xdg_gets_the_usual_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    config = defaults_for_user()
    assert config.listen.runtime_dir == Path(f"/tmp/memosd-{os.getuid()}")
    assert config.store.data_dir == Path("/home/ann/.local/share/memosd")


def test_a_runtime_directory_too_long_for_a_socket_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "r" * 86)
    longest = defaults_for_user()
    assert len(str(longest.listen.runtime_dir / "control.sock")) == 107
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "r" * 87)
    with pytest.raises(MemError, match=r"listen\.runtime_dir: must be at most 94 bytes long"):
        defaults_for_user()


def test_check_names_where_a_replaced_value_came_from() -> None:
    assert check(Config(), "command line") == Config()


def cgroup(mount: Path, folder: str, name: str, limit: str) -> None:
    """Give the cgroup `folder` below `mount` a limit."""
    (mount / folder).mkdir(parents=True, exist_ok=True)
    (mount / folder / name).write_text(f"{limit}\n", encoding="ascii")


def test_the_smallest_cgroup_limit_on_the_way_up_binds(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/system.slice/memosd.service\n", encoding="ascii")
    cgroup(tmp_path, "system.slice/memosd.service", "memory.max", "max")
    assert machine_memory_bytes(own, tmp_path) == machine_memory_bytes(tmp_path / "none")
    cgroup(tmp_path, "system.slice", "memory.max", "1048576")
    assert machine_memory_bytes(own, tmp_path) == 1048576
    cgroup(tmp_path, "", "memory.max", "4096")
    assert machine_memory_bytes(own, tmp_path) == 4096


def test_the_older_cgroup_hierarchy_binds_too(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("5:cpu,memory:/pod\n1:name=systemd:/\n", encoding="ascii")
    cgroup(tmp_path / "memory", "pod", "memory.limit_in_bytes", "8192")
    assert machine_memory_bytes(own, tmp_path) == 8192


def test_the_embedder_is_what_make_models_made_where_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMOSD_MODELS_DIR", str(tmp_path))
    folder = tmp_path / "all-minilm-l6-v2"
    assert Models().find_embedder() == ""
    folder.mkdir()
    assert Models().find_embedder() == ""  # it is being made
    (folder / STAMP).touch()
    assert Models().find_embedder() == str(folder)
    assert Models(embedder="none").find_embedder() == ""
    assert Models(embedder="/srv/model").find_embedder() == "/srv/model"


def test_the_embedder_is_one_that_make_models_makes() -> None:
    assert _EMBEDDER in {model.name for model in CATALOGUE}


def test_workers_share_half_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    assert [Workers(count=n).threads_of_each for n in (1, 2, 3, 4, 9)] == [4, 2, 1, 1, 1]
    assert Workers(threads=6).threads_of_each == 6


def test_every_policy_of_the_kernel_can_be_configured() -> None:
    assert get_args(get_type_hints(Ram)["policy"]) == tuple(POLICIES)

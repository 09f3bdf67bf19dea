"""The daemon's configuration: every key, its type, default and range.

Owns the meaning of `etc/memosd.toml`, which is the manual for people; a test holds the two equal.
Invariant: a `Config` that `load` or `defaults_for_user` returns has passed `check`, so nobody
after boot validates a setting again. Frozen: changing one takes a restart.
Read by `memosd/boot.py`, which hands each subsystem its own section.
"""

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, field

from libmem.abi.errors import Errno, MemError
from libmem.abi.limits import FRAME_MAX_BYTES, READ_MAX_BYTES
from libmem.abi.paths import CONTROL_SOCKET, SYSTEM_RUNTIME_DIR, models_dir, user_runtime_dir
from memosd.machine import machine_memory_bytes

__all__ = [
    "Behaviour",
    "Config",
    "Device",
    "Disk",
    "Kv",
    "Limits",
    "Listen",
    "Log",
    "Models",
    "Namespaces",
    "Ram",
    "Store",
    "Transitions",
    "Workers",
    "check",
    "defaults_for_user",
    "load",
]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

_UNITS: Final = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?(B|KiB|MiB|GiB|TiB|%)", re.ASCII)
_SHARE_KEY: Final = "ram.budget_bytes"
_RESERVE_KEY: Final = "ram.reserve_bytes"
# Measured against the machine: the other budgets are promises, not shares.
_SHARE_KEYS: Final = (_SHARE_KEY, _RESERVE_KEY)
_DEFAULT_SHARE: Final = 0.25
_RESERVE_PERCENT: Final = 5
# sockaddr_un.sun_path holds 108 bytes with its final NUL (unix(7)).
_SOCKET_PATH_MAX_BYTES: Final = 107

_EMBEDDER: Final = "all-minilm-l6-v2"

Octal = Annotated[str, Meta(pattern=r"^0[0-7]{3}$")]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(ge=0.01, le=86_400)]
Share = Annotated[float, Meta(ge=0.01, le=1.0)]
Error = Annotated[float, Meta(gt=0.0, le=1.0)]
Quota = Annotated[int, Meta(ge=0, le=1 << 50)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class Listen(_Section, frozen=True, kw_only=True):
    """Where clients find the daemon."""

    runtime_dir: Path = SYSTEM_RUNTIME_DIR
    mode: Octal = "0660"

    @property
    def mode_bits(self) -> int:
        """`mode` as chmod takes it."""
        return int(self.mode, 8)


class Store(_Section, frozen=True, kw_only=True):
    """Durable state and the threads that write it."""

    data_dir: Path = Path("/var/lib/memosd")
    table_map_bytes: Annotated[int, Meta(ge=16 * MIB, le=64 * TIB)] = 64 * GIB
    io_threads: Annotated[int, Meta(ge=1, le=64)] = 3
    log_retain_events: Annotated[int, Meta(ge=1_000, le=1_000_000_000)] = 1_000_000


class Ram(_Section, frozen=True, kw_only=True):
    """The RAM tier; the watermarks are shares of its budget."""

    budget_bytes: Annotated[int, Meta(ge=64 * KIB)] = field(
        default_factory=lambda: int(machine_memory_bytes() * _DEFAULT_SHARE)
    )
    high_watermark: Share = 0.90
    low_watermark: Share = 0.80
    policy: Literal["default", "lru", "lfu", "sieve", "gdsf"] = "default"
    reserve_bytes: Annotated[int, Meta(ge=0)] = field(
        default_factory=lambda: machine_memory_bytes() * _RESERVE_PERCENT // 100
    )


class Disk(_Section, frozen=True, kw_only=True):
    """The disk tier."""

    budget_bytes: Annotated[int, Meta(ge=64 * KIB, le=1 << 50)] = 64 * GIB
    high_watermark: Share = 0.95
    low_watermark: Share = 0.90
    writeback_share: Share = 0.5
    inline_limit_bytes: Annotated[int, Meta(ge=0, le=64 * KIB)] = 16 * KIB


class Device(_Section, frozen=True, kw_only=True):
    """The device tier: an accelerator's memory."""

    name: Annotated[str, Meta(pattern=r"^(none|cpu|cuda(:[0-9]{1,3})?)$")] = "none"
    budget_bytes: Annotated[int, Meta(ge=64 * KIB, le=1 << 50)] = GIB


class Kv(_Section, frozen=True, kw_only=True):
    """KV caches whose header does not say how they may lie on disk."""

    store_as: Literal["exact", "int8"] = "exact"
    error_max: Error = 0.02


class Models(_Section, frozen=True, kw_only=True):
    """Which models memories are read with."""

    embedder: Annotated[str, Meta(min_length=1)] = "auto"

    def find_embedder(self) -> str:
        """A folder or a hub id; empty where there is none. `auto`: what `make models` made."""
        if self.embedder == "none":
            return ""
        if self.embedder != "auto":
            return self.embedder
        folder = models_dir() / _EMBEDDER
        # Its stamp, written last: the folder of a model that is being made has none.
        return str(folder) if (folder / "manifest.json").exists() else ""


class Workers(_Section, frozen=True, kw_only=True):
    """The processes that run them."""

    count: Annotated[int, Meta(ge=1, le=64)] = 1
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    memory_bytes: Quota = 0
    job_timeout_s: Annotated[float, Meta(ge=1, le=86_400)] = 60.0
    nice: Annotated[int, Meta(ge=0, le=19)] = 5

    @property
    def threads_of_each(self) -> int:
        """Half of the processors that this process may use, shared by all; at least one."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // 2 // self.count)


class Transitions(_Section, frozen=True, kw_only=True):
    """The process that makes memories of others, and its model."""

    language_model: Annotated[str, Meta(min_length=1)] = "none"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    memory_bytes: Quota = 0
    timeout_s: Annotated[float, Meta(ge=1, le=604_800)] = 7200.0
    nice: Annotated[int, Meta(ge=0, le=19)] = 10

    @property
    def thread_count(self) -> int:
        """Half of the processors that this process may use; at least one."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // 2)


class Limits(_Section, frozen=True, kw_only=True):
    """What one client, one user and all together may hold."""

    sessions: Count = 1024
    sessions_per_uid: Count = 512
    handles_per_session: Count = 4096
    pins_per_session: Count = 1024
    pins_per_session_bytes: Quota = 0
    pin_share_per_uid: Share = 0.5
    prefetches_per_session: Count = 64
    watches_per_session: Count = 8
    call_by_value_bytes: Annotated[int, Meta(ge=KIB, le=min(READ_MAX_BYTES, FRAME_MAX_BYTES))] = MIB
    namespaces_per_uid: Count = 256


class Namespaces(_Section, frozen=True, kw_only=True):
    """Who makes namespaces, and what a new one gets. Quotas: 0 is unlimited."""

    create: Literal["anyone", "admin"] = "anyone"
    default_mode: Octal = "0700"
    default_quota_disk_bytes: Quota = 0
    default_quota_ram_bytes: Quota = 0
    default_quota_cubes: Quota = 0

    @property
    def default_mode_bits(self) -> int:
        """`default_mode` as an integer."""
        return int(self.default_mode, 8)


class Behaviour(_Section, frozen=True, kw_only=True):
    """How often the background work runs."""

    heat_flush_s: Seconds = 10.0
    expiry_sweep_s: Seconds = 30.0
    writeback_delay_s: Seconds = 1.0


class Log(_Section, frozen=True, kw_only=True):
    """What goes to standard error, and how."""

    format: Literal["auto", "logfmt", "json"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Section, frozen=True, kw_only=True):
    """All sections; `Config()` is what an empty file means."""

    listen: Listen = Listen()
    store: Store = Store()
    ram: Ram = field(default_factory=Ram)
    disk: Disk = Disk()
    device: Device = Device()
    kv: Kv = Kv()
    models: Models = Models()
    workers: Workers = Workers()
    transitions: Transitions = Transitions()
    limits: Limits = Limits()
    namespaces: Namespaces = Namespaces()
    behaviour: Behaviour = Behaviour()
    log: Log = Log()


_FORMS: Final = {"device.name": 'expected "none", "cpu", "cuda" or one such as "cuda:1"'}
"""What a text must look like where it is no mode."""
_SECTIONS: Final[dict[str, type[_Section]]] = get_type_hints(Config)
_READ_ERRORS: Final[dict[type[OSError], Errno]] = {
    FileNotFoundError: Errno.ENOENT,
    PermissionError: Errno.EACCES,
}
_KEYS: Final = [
    f"{table}.{key}" for table, section in _SECTIONS.items() for key in section.__struct_fields__
]


def load(path: Path) -> Config:
    """The configuration in the TOML file at `path`; keys it leaves out have their defaults.

    Errors: EINVAL (not TOML, an unknown or misplaced key, a wrong type, a value out of range; the
    message names file and key), ENOENT, EACCES or EIO (the file cannot be read).
    """
    source = str(path)
    tables = _parse(path)
    raw = {table: _read_table(source, table, rows) for table, rows in tables.items()}
    try:
        config = msgspec.convert(raw, Config, dec_hook=_to_path)
    except msgspec.ValidationError as error:
        raise _invalid(source, *_explain(str(error))) from None
    return check(config, source)


def defaults_for_user() -> Config:
    """What `memosd --user` runs with: the caller's own directories, nobody else let in.

    Errors: EINVAL (the environment names a runtime or data directory that cannot serve).
    """
    base = os.environ.get("XDG_DATA_HOME")
    data_home = Path(base) if base else Path.home() / ".local/share"
    config = Config(
        listen=Listen(runtime_dir=user_runtime_dir(), mode="0600"),
        store=Store(data_dir=data_home / "memosd"),
    )
    return check(config, "environment")


def check(config: Config, source: str) -> Config:
    """`config` itself, once the rules that hold between values or against the machine hold.

    For callers that replace a value (`--data-dir`); `source` names where it came from.
    Errors: EINVAL.
    """
    for key, path in (
        ("listen.runtime_dir", config.listen.runtime_dir),
        ("store.data_dir", config.store.data_dir),
    ):
        if not path.is_absolute():
            raise _invalid(source, key, f"must be an absolute path, not {str(path)!r}")
    socket = os.fsencode(config.listen.runtime_dir / CONTROL_SOCKET)
    if len(socket) > _SOCKET_PATH_MAX_BYTES:
        room = _SOCKET_PATH_MAX_BYTES - len(CONTROL_SOCKET) - 1
        raise _invalid(source, "listen.runtime_dir", f"must be at most {room} bytes long")
    for table, tier in (("ram", config.ram), ("disk", config.disk)):
        if tier.low_watermark >= tier.high_watermark:
            raise _invalid(
                source, f"{table}.low_watermark", f"must be below {table}.high_watermark"
            )
    if config.ram.budget_bytes > (most := machine_memory_bytes()):
        raise _invalid(source, _SHARE_KEY, f"must fit this machine's memory of {most} bytes")
    if config.ram.reserve_bytes >= most:
        raise _invalid(source, _RESERVE_KEY, f"must be less than this machine's {most} bytes")
    return config


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        code = _READ_ERRORS.get(type(error), Errno.EIO)
        raise MemError(code, f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise MemError(Errno.EINVAL, f"{path}: not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise MemError(Errno.EINVAL, f"{path}: not TOML: {error}") from None


def _read_table(source: str, table: str, rows: Any) -> dict[str, Any]:
    """The table's rows with sizes in bytes; unknown keys are refused."""
    section = _SECTIONS.get(table)
    if section is None:
        raise _unknown(source, table)
    if not isinstance(rows, dict):
        raise _invalid(source, table, f"must be a table: write [{table}]")
    for key in rows:
        if key not in section.__struct_fields__:
            raise _unknown(source, table, key)
    return {key: _read_value(source, f"{table}.{key}", value) for key, value in rows.items()}


def _read_value(source: str, key: str, value: Any) -> Any:
    if not (key.endswith("_bytes") and isinstance(value, str)):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise _invalid(source, key, f'{value!r} is not a size such as 4096, "512 MiB" or "4 GiB"')
    number, unit = float(match[1]), match[2]
    if unit != "%":
        return int(number * _UNITS[unit])
    if key not in _SHARE_KEYS:
        raise _invalid(source, key, f"takes no percentage; only {' and '.join(_SHARE_KEYS)} do")
    if not 0 < number <= 100:
        raise _invalid(source, key, f"{value!r} is not a share of this machine's memory")
    return int(machine_memory_bytes() * number / 100)


def _to_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected `str`, got `{type(value).__name__}`")


def _explain(message: str) -> tuple[str, str]:
    """Key and reason out of a msgspec message: "Expected `int`, got `str` - at `$.ram.policy`"."""
    reason, _, place = message.partition(" - at `$.")
    key = place.rstrip("`")
    table, _, name = key.partition(".")
    if reason.startswith("Invalid enum value"):
        known = get_args(get_type_hints(_SECTIONS[table])[name])
        return (
            key,
            f"expected one of {', '.join(known)}; got{reason.removeprefix('Invalid enum value')}",
        )
    if "matching regex" in reason:
        return key, _FORMS.get(key, 'expected an octal mode such as "0660"')
    return key, reason[0].lower() + reason[1:].replace("`", "")


def _unknown(source: str, table: str, name: str | None = None) -> MemError:
    """Refuse a table, or a key in one, with the nearest known: of its own table, else of all."""
    # A quoted TOML key may hold anything, line breaks included.
    parts = [
        part if part.isidentifier() else repr(part) for part in (table, name) if part is not None
    ]
    key = ".".join(parts)
    own = [known for known in _KEYS if known.startswith(f"{table}.")]
    moved = [known for known in _KEYS if known.endswith(f".{name or table}")]
    nearest = difflib.get_close_matches(key, moved or own or [*_SECTIONS, *_KEYS], 1, 0.0)[0]
    what = "key" if name is not None or nearest in _KEYS else "table"
    text = f"{source}: unknown {what} {key}; did you mean {nearest}?"
    return MemError(Errno.EINVAL, text, key=key, nearest=nearest)


def _invalid(source: str, key: str, reason: str) -> MemError:
    return MemError(Errno.EINVAL, f"{source}: {key}: {reason}", key=key)

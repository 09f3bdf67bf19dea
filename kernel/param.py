"""The kernel's parameters: what boot hands it from the configuration, in the kernel's units."""

import msgspec

__all__ = ["Parameters"]


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults suit tests; `memosd.boot` fills every field."""

    admin_uids: frozenset[int] = frozenset({0})
    data_dir: str = ""
    fd_socket: str = ""

    ram_budget_bytes: int = 64 << 20
    ram_high: float = 0.9
    """Background reclaim starts above this share of the budget ..."""
    ram_low: float = 0.8
    """... and stops below this one."""
    free_at_once_bytes: int = 64 << 10
    """Giving back so much takes some 10 us, less than having another thread do it."""
    ram_reserve_bytes: int = 0
    """Memory left to others: below that the budget falls. 0: it stays as it is."""
    ram_frames: int = 4096
    """One descriptor each; bounded by RLIMIT_NOFILE."""
    disk_budget_bytes: int = 1 << 30
    io_threads: int = 3
    """Payloads that are moved between RAM and disk at once."""
    disk_high: float = 0.95
    """Above this share of it cache payloads go ..."""
    disk_low: float = 0.9
    """... until it is below this one."""
    writeback_share: float = 0.5
    """Of what the disk can do, for write-back while RAM is not short."""
    policy: str = "lru"

    inline_limit_bytes: int = 16 << 10
    """Payloads up to this lie in the table itself."""
    call_by_value_bytes: int = 1 << 20

    sessions: int = 1024
    sessions_per_uid: int = 512
    handles_per_session: int = 4096
    pins_per_session: int = 1024
    pins_per_session_bytes: int = 0
    """0: none but the user's share."""
    pin_share_per_uid: float = 1.0
    """Of the RAM budget."""
    prefetches_per_session: int = 64
    watches_per_session: int = 8
    namespaces_per_uid: int = 256

    anyone_makes_namespaces: bool = True
    namespace_mode: int = 0o700
    quota_disk_bytes: int = 0
    quota_ram_bytes: int = 0
    quota_cubes: int = 0

    log_retain_events: int = 1_000_000
    heat_flush_ns: int = 10_000_000_000
    expiry_sweep_ns: int = 30_000_000_000
    writeback_delay_ns: int = 1_000_000_000
    bind_timeout_ns: int = 5_000_000_000

    workers: int = 0
    """Processes that embed."""
    no_workers: str = "no embedder is configured"
    """Why there are none, where there are none."""
    is_words_only: bool = False
    """Somebody wants it so: no search has to tell of it."""
    job_timeout_ns: int = 60_000_000_000

    transition_workers: int = 0
    """Processes that make memories of others."""
    no_transitions: str = "no model for transitions is configured"
    transition_timeout_ns: int = 7_200_000_000_000

    device: str = ""
    """Name of the accelerator whose memory is a tier; `cpu`: the host stands in for one."""
    no_device: str = "no device is configured"
    device_budget_bytes: int = 0

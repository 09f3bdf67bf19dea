"""Every limit of the ABI, with its unit and its reason.

Owned by the contract: clients check against these before they send, the kernel checks again.
What an administrator may change lives in the configuration, not here.
"""

from typing import Final

ABI_VERSION: Final = 1
"""Carried by every request; a daemon refuses any other with EPROTONOSUPPORT."""

NAME_MAX_BYTES: Final = 480
"""A whole cube name in UTF-8. LMDB keys end at 511 bytes; the rest is room for prefixes."""

SEGMENT_MAX_BYTES: Final = 255
"""One component between two slashes, as in most file systems."""

FRAME_MAX_BYTES: Final = 4 << 20
"""One control message. ZeroMQ drops a connection that sends more; payloads use the fd road."""

READ_MAX_BYTES: Final = 1 << 20
"""The most that one `read_cube` returns by value; larger payloads are read in parts or mapped."""

BATCH_MAX_CALLS: Final = 1024
"""Calls in one `batch`; bounds how long the kernel serves one client without a turn."""

PAYLOAD_MAX_BYTES: Final = 1 << 44
"""A cube's payload, 16 TiB: keeps sizes far from overflow; budgets decide long before."""

ATTRIBUTES_MAX_BYTES: Final = 256 << 10
"""A cube's driver attributes, encoded."""

ATTRIBUTES_DEPTH_MAX: Final = 32
"""Maps and arrays within each other: what one could store, everybody must be able to decode."""

TEXT_FIELD_MAX_BYTES: Final = 4096
"""One descriptive text field (title, origin, ...)."""

POSITION_MAX: Final = 1 << 53
"""A cube's place in its session: exact in JSON's numbers too."""

TAGS_MAX: Final = 64
PARENTS_MAX: Final = 256
SOURCES_MAX: Final = 4096
"""What a derived cube may have been made from, its parents' own sources included."""
RECEIPT_MAX: Final = 1000
"""Fallen cubes that a receipt names."""
LINEAGE_MAX: Final = 1000
"""Nodes of a graph of derivations."""
READDIR_MAX: Final = 1000
HITS_MAX: Final = 1000
QUERY_MAX_CHARS: Final = 10_000
"""A search's query: its words are cut and stemmed on the index's one thread."""
BESIDE_MAX: Final = 32
"""Passages that a search shows before and after each hit."""
SEARCH_WAIT_MAX_MS: Final = 60_000
"""How long a search may wait for its query's vector."""
HINT_PATIENCE_NS: Final = 60_000_000_000
"""A hint without a deadline is dropped when the disk was never free for so long; who waits for
what becomes of it waits as long."""
EVENTS_MAX: Final = 1000
WATCH_MAX_MS: Final = 60_000
PRIORITY_MAX: Final = 100
"""Reclaim takes the lowest priority first; 50 is the default, 100 the most precious."""
HALF_LIFE_MIN_S: Final = 1e-3
HALF_LIFE_MAX_S: Final = 1e9
"""Of a header's half-life; 0 is none."""

PAGE_BYTES: Final = 1 << 20
"""The unit of verification: one xxh3-128 digest per page of payload. Part of the format."""

"""What `stat` says of a KV cache: its header in words."""

from libmem.abi.errors import MemError
from libmem.abi.kv import KV_ATTRIBUTE, KvHeader, KvLayers, kv_header
from libmem.abi.structs import CubeType, Stat
from memosd.tools.memctl.units import counted

__all__ = ["kv_facts"]

_MODEL_CHARS = 12
"""Of a fingerprint, enough to tell models apart; `--json` has all."""


def kv_facts(stat: Stat) -> list[tuple[str, str]]:
    """Title and value of each line; none where the cube is no KV cache, or one that cannot be read
    by this version."""
    if stat.type is not CubeType.ACTIVATION or KV_ATTRIBUTE not in stat.attributes:
        return []
    try:
        header = kv_header(stat.attributes)
    except MemError:
        return []
    return [
        ("tokens", _tokens(header)),
        ("layers", "; ".join(map(_layers, header.layers)) + f"; {header.dtype}"),
        ("model", f"{header.model[:_MODEL_CHARS]}..."),
    ]


def _tokens(header: KvHeader) -> str:
    if not header.start:
        return f"{header.tokens:,}"
    return f"{header.tokens:,}, the first {header.start:,} of them in its first parent"


def _layers(run: KvLayers) -> str:
    dims = f"{run.key_dim}" if run.key_dim == run.value_dim else f"{run.key_dim}+{run.value_dim}"
    window = f", window {run.window:,}" if run.window else ""
    return f"{run.count} of {counted(run.heads, 'KV head')} x {dims}{window}"

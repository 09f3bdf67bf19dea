"""libmem.hf: caches of transformers models as memory that processes share.

    import libmem, libmem.hf

    libmem.hf.save_cache(client, "/kv/manual", model, cache, token_ids)
    cache = libmem.hf.map_cache(client, "/kv/manual", model, token_ids=prompt_ids)
    model.generate(prompt_ids, past_key_values=cache)

`attach(model, client)` does both by itself. Needs the extra `models`: torch and transformers.
"""

from libmem.hf.attach import Attached, Stats, attach
from libmem.hf.cache import CopiedCache, MapOptions, MappedCache, map_cache, new_cache
from libmem.hf.fingerprint import fingerprint, refresh
from libmem.hf.layers import MappedLayer
from libmem.hf.shelf import AttachOptions, Restore
from libmem.hf.store import SaveOptions, fork, save_cache

__all__ = [
    "attach",
    "map_cache",
    "new_cache",
    "save_cache",
    "fork",
    "fingerprint",
    "refresh",
    "AttachOptions",
    "Restore",
    "Attached",
    "Stats",
    "MapOptions",
    "SaveOptions",
    "MappedCache",
    "CopiedCache",
    "MappedLayer",
]

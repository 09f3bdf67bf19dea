"""Token ids as callers have them: a list, a text's tensor, or a whole batch.

Owns the answer to which text is meant. Invariant: one row's ids never stand in for another's.

Used by `libmem.hf.cache` and `libmem.hf.store`.
"""

from typing import TypeAlias

import torch

from libmem.abi.errors import Errno, MemError

__all__ = ["TokenIds", "ids_of_all", "ids_of_row"]

TokenIds: TypeAlias = "torch.Tensor | list[int]"
"""One text's ids, [tokens], or a batch's, [rows, tokens]."""


def ids_of_row(token_ids: TokenIds, row: int) -> list[int]:
    """The ids of one row: of a batch that row's; a single text is whichever row's it is said to be.

    Errors: EINVAL (a batch without that row, or no token ids at all).
    """
    if not isinstance(token_ids, torch.Tensor):
        return list(token_ids)
    _require_ids(token_ids)
    if token_ids.dim() == 1:
        return token_ids.tolist()
    if not 0 <= row < token_ids.shape[0]:
        raise MemError(Errno.EINVAL, f"there is no row {row} among ids of {token_ids.shape[0]}")
    return token_ids[row].tolist()


def ids_of_all(token_ids: TokenIds, tokens: int) -> list[int]:
    """The first `tokens` ids, which all rows of a batch must share; fewer where there are fewer.

    Errors: EINVAL (rows that differ there, or no token ids at all).
    """
    if not isinstance(token_ids, torch.Tensor):
        return list(token_ids[:tokens])
    _require_ids(token_ids)
    first = token_ids[..., :tokens].reshape(-1, min(tokens, token_ids.shape[-1]))
    if len(first) > 1 and bool((first != first[:1]).any()):
        raise MemError(Errno.EINVAL, "the rows of this batch do not begin with the same tokens")
    return first[0].tolist()


def _require_ids(token_ids: torch.Tensor) -> None:
    if token_ids.dim() not in {1, 2} or 0 in token_ids.shape[:-1] or token_ids.is_floating_point():
        raise MemError(
            Errno.EINVAL,
            f"token ids are [tokens] or [rows, tokens] of integers, not {tuple(token_ids.shape)} "
            f"of {token_ids.dtype}",
        )

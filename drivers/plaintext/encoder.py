"""A sentence encoder: loaded, checked, and as fast as this machine computes it.

Owns tokenizer and weights. Any encoder that transformers can load is computed: on a CPU with VNNI
in 8-bit integers, with BERT's own forward pass where it is one. Rounding is kept only where it
keeps the meaning: a few sentences are computed both ways first.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from blake3 import blake3
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as hf_logging

from libmem.abi.errors import Errno, MemError
from memosd.drivers.plaintext.bert import Bert, is_bert
from memosd.drivers.plaintext.rowint8 import RowInt8, is_supported

__all__ = ["Encoder", "Tokens"]

_METHOD: Final = "1"
"""To be changed with anything that changes vectors: rounding, pooling, where sentences are cut."""
_WINDOW_TOKENS: Final = 512
"""Of models that can read more: attention costs the square, and a passage is shorter."""
_TOKEN_CHARACTERS: Final = 32
"""Far more than a token has on the average: what is behind a window's worth is not looked at."""
_COSINE_MIN: Final = 0.99
_CHECK: Final = (
    "Where did you go last summer, and who was with you?",
    "We took the night train to Lisbon. It rained all week, but nobody minded!",
    "The committee approved the budget for the new library on 3 March 2021.",
    "My sister's cat hates the vacuum cleaner",
)
_UNTRAINED: Final = ("pooler", "position_ids")
"""Parts that weights for sentence vectors may lack: nothing here reads them."""


class Tokens(NamedTuple):
    """One text for the model. `inner`: between the special tokens."""

    ids: list[int]
    inner: tuple[int, int]


class Encoder:
    """From texts to token vectors. `source`: a folder or a hub id."""

    def __init__(self, source: str) -> None:
        """Errors: ENOENT (no such folder or hub id, no model in it), ECORRUPT (damaged),
        EINVAL (not an encoder of text)."""
        self._tokenizer, model = _load(source)
        self.vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        self.dimensions = int(model.config.hidden_size)
        self._window_tokens = _window_tokens(model, self._tokenizer)
        self._device = model.device
        self._model = model
        self._bert: Bert | None = None
        digest = _digest(model, self._tokenizer)
        self._quicken(source)
        digest.update(f"{_METHOD} {self.precision} {self._window_tokens}".encode())
        self.fingerprint: str = digest.hexdigest()

    @property
    def precision(self) -> str:
        return "int8" if self._is_rounded else "float32"

    def tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """What exceeds the window is cut off; a text that says nothing has special tokens alone."""
        if not texts:
            return []
        longest = self._window_tokens * _TOKEN_CHARACTERS
        # Half a surrogate pair is no character: nobody's tokenizer takes it.
        plain = [text[:longest].encode("utf-8", "replace").decode("utf-8") for text in texts]
        found = self._tokenizer(
            plain,
            truncation=True,
            max_length=self._window_tokens,
            return_special_tokens_mask=True,
        )
        pairs = zip(found["input_ids"], found["special_tokens_mask"], strict=True)
        # A tokenizer without special tokens makes nothing of nothing.
        return [_tokens(ids, special) if ids else Tokens([0], (0, 0)) for ids, special in pairs]

    def hidden(self, batch: list[list[int]]) -> Any:
        """float32 [texts, tokens of the longest, dimensions]; what is behind a text is noise."""
        longest = max(map(len, batch))
        is_even = longest == min(map(len, batch))
        with torch.inference_mode():
            padded = [ids + [0] * (longest - len(ids)) for ids in batch]
            ids = torch.tensor(padded, device=self._device)
            mask = None
            if not is_even:
                lengths = torch.tensor([len(ids) for ids in batch], device=self._device)
                mask = torch.arange(longest, device=self._device) < lengths[:, None]
            if self._bert is not None:
                return self._bert(ids, mask).numpy()
            mask = torch.ones_like(ids) if mask is None else mask.long()
            found = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            return found.float().cpu().numpy()

    def _quicken(self, source: str) -> None:
        """Round the weights, and look whether the vectors of a few texts stay what they were."""
        self._is_rounded = False
        try:
            with _measured(self._model) as ranges:
                exact = self._means()
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise MemError(Errno.EINVAL, f"{source} does not encode texts: {error}") from None
        if not exact.isfinite().all():
            raise MemError(Errno.ECORRUPT, f"the model in {source} computes no numbers")
        if self._device.type != "cpu" or not is_supported():
            return
        if is_bert(self._model):
            self._bert = Bert(self._model, ranges)
        else:
            for linear, met in ranges.items():
                linear.forward = RowInt8(linear.weight, linear.bias, met)
        cosines = nn.functional.cosine_similarity(exact, self._means())
        self._is_rounded = bool(cosines.min() >= _COSINE_MIN)
        if not self._is_rounded:
            self._bert = None
            for linear in ranges:
                vars(linear).pop("forward", None)
        elif self._bert is not None:
            self._model = None  # the layers' own weights are needed no more

    def _means(self) -> Any:
        texts = [self.hidden([tokens.ids])[0] for tokens in self.tokens(_CHECK)]
        return torch.stack([torch.from_numpy(hidden).mean(0) for hidden in texts])


@contextmanager
def _measured(model: Any) -> Iterator[dict[Any, Any]]:
    """The linear layers that are used in the block, with the largest magnitude at each input."""
    ranges: dict[Any, Any] = {}

    def look(linear: Any, inputs: Any) -> None:
        met = inputs[0].flatten(0, -2).abs().amax(0)
        ranges[linear] = torch.maximum(ranges.get(linear, met), met)

    linears = [module for module in model.modules() if type(module) is nn.Linear]
    hooks = [linear.register_forward_pre_hook(look) for linear in linears]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def _tokens(ids: list[int], special: list[int]) -> Tokens:
    if 0 not in special:
        return Tokens(ids, (0, 0))
    return Tokens(ids, (special.index(0), len(ids) - special[::-1].index(0)))


def _load(source: str) -> tuple[Any, Any]:
    """Tokenizer and model, in evaluation mode, float32, on an accelerator where there is one."""
    folder = Path(source).expanduser()
    is_folder = folder.is_dir()
    if is_folder:
        if not (folder / "config.json").is_file():
            raise MemError(Errno.ENOENT, f"{source} holds no model: there is no config.json")
        source = str(folder)
    elif folder.is_absolute() or source.startswith((".", "~")):
        raise MemError(Errno.ENOENT, f"there is no folder {source}")
    hf_logging.disable_progress_bar()  # a worker's log is no terminal
    place = {"device_map": "auto"} if torch.accelerator.is_available() else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, info = AutoModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **place
        )
    # A damaged file fails in whatever reads it, in dozens of ways: this is their one boundary.
    except Exception as error:  # noqa: BLE001
        raise _refusal(source, is_folder, error) from None
    missing = [key for key in info["missing_keys"] if not any(part in key for part in _UNTRAINED)]
    if missing or info["mismatched_keys"]:
        raise MemError(Errno.ECORRUPT, f"{source} lacks weights of its own model: {missing[:3]}")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise MemError(Errno.EINVAL, f"the tokenizer of {source} belongs to another model")
    return tokenizer, model.eval().requires_grad_(requires_grad=False)


def _refusal(source: str, is_folder: bool, error: Exception) -> MemError:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    if not is_folder:
        return MemError(Errno.ENOENT, f"no model {source} is to be had: {text}")
    weights = [path for kind in ("*.safetensors", "*.bin") for path in Path(source).glob(kind)]
    if not weights:
        return MemError(Errno.ENOENT, f"{source} holds no weights")
    if "model type" in text or "Unrecognized" in text:
        return MemError(Errno.EINVAL, f"transformers does not know the model in {source}: {text}")
    return MemError(Errno.ECORRUPT, f"the model in {source} is damaged: {text}")


def _window_tokens(model: Any, tokenizer: Any) -> int:
    places = getattr(model.config, "max_position_embeddings", None) or _WINDOW_TOKENS
    for module in model.modules():
        # RoBERTa and its kin count places from behind the one for padding.
        table = getattr(module, "position_embeddings", None)
        if table is not None and getattr(table, "padding_idx", None) is not None:
            places -= table.padding_idx + 1
    return int(min(places, tokenizer.model_max_length, _WINDOW_TOKENS))


def _digest(model: Any, tokenizer: Any) -> Any:
    """Everything that a vector depends on: configuration, tokenizer, weights as loaded."""
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"):
        config.pop(name, None)
    digest = blake3(json.dumps(config, sort_keys=True, default=repr).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    else:
        digest.update(backend.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        if any(part in name for part in _UNTRAINED):
            continue  # made up anew with every load, where the file has none
        digest.update(f"\0{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest

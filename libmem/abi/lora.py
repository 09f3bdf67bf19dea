"""LoRA adapters as payloads: the header, and what the tensors must be.

Owns the format of parametric cubes of the kind `lora` (docs/format.md). The payload is PEFT's
`adapter_model.safetensors` as it is, byte for byte; the header carries its `adapter_config.json` as
it is, and the fingerprint of the model that the adapter was made for. No model framework: the
kernel's driver and `libmem.peft` both read this.

Only what a pair of low-rank factors can say is taken. Whole layers saved beside them
(`modules_to_save`, trained biases of the base), settings that change the base model (an
initialisation such as PiSSA's, `layer_replication`) and variants that compute something else are
refused by name, not dropped.
"""

import re
from typing import Any, Final, NamedTuple

import msgspec

from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import fingerprint
from libmem.abi.structs import Value
from libmem.abi.tensors import Tensor

__all__ = [
    "LORA_ATTRIBUTE",
    "Factors",
    "LoraConfig",
    "LoraHeader",
    "config_of",
    "factors_of",
    "lora_header",
]

LORA_ATTRIBUTE: Final = "lora"
"""The attribute of a parametric cube that holds its `LoraHeader`."""
_CONFIG_MAX_BYTES: Final = 128 << 10
_RANK_MAX: Final = 1 << 16
_DTYPES: Final = {"F64", "F32", "F16", "BF16"}
_PREFIX: Final = "base_model.model."
"""What PEFT puts before the names of a model's modules."""
_NAME: Final = re.compile(
    r"(?P<module>.+)\.(?:"
    r"lora_(?P<factor>[AB])\.weight|lora_embedding_(?P<embedding>[AB])"
    r"|(?P<bias>lora_B\.bias)|(?P<magnitude>lora_magnitude_vector(?:\.weight)?))"
)


_PLAIN_STARTS: Final = ("gaussian", "orthogonal")
"""Initialisations that leave the base model's weights alone, beside true and false."""
_FOREIGN: Final = (
    "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters",
    "megatron_config", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
"""Settings of PEFT's that say more than a pair of factors does, or import what they name."""


class LoraHeader(Value, frozen=True):
    """What a parametric cube's payload is: the attribute `lora`."""

    model: str
    """Fingerprint of the base model: 64 hexadecimal digits (`libmem.peft`)."""
    config: str
    """PEFT's `adapter_config.json`, as it was written."""


class LoraConfig(msgspec.Struct, frozen=True):
    """Of that configuration what decides on the tensors; PEFT's own class reads the rest."""

    peft_type: str
    r: int
    lora_alpha: float = 8.0
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_dora: bool | None = False
    lora_bias: bool | None = False
    init_lora_weights: bool | str | None = True

    @property
    def ranks(self) -> frozenset[int]:
        """All that a module may have. Which has which is said in regular expressions, and those
        of others are not run in the daemon."""
        return frozenset({self.r, *self.rank_pattern.values()})


class Factors(NamedTuple):
    """What is added to one module: `scaling * b @ a`."""

    a: Tensor
    """[rank, in]; for an embedding [rank, tokens]."""
    b: Tensor
    """[out, rank]."""
    magnitude: Tensor | None = None
    """DoRA's."""
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


_settings: Final = msgspec.json.Decoder(dict[str, Any])


def lora_header(attributes: dict[str, Any]) -> LoraHeader:
    """The LoRA header among a cube's attributes, checked. Errors: EINVAL."""
    try:
        header = msgspec.convert(attributes[LORA_ATTRIBUTE], LoraHeader)
    except KeyError:
        raise MemError(
            Errno.EINVAL, f"a parametric cube has the attribute {LORA_ATTRIBUTE!r}"
        ) from None
    except (msgspec.ValidationError, RecursionError) as error:
        raise MemError(Errno.EINVAL, f"not a LoRA header: {error}") from None
    fingerprint(header.model)
    config_of(header.config)
    return header


def config_of(text: str) -> LoraConfig:
    """An adapter configuration, as far as it decides on the tensors. Errors: EINVAL."""
    if len(text) > _CONFIG_MAX_BYTES:
        raise MemError(Errno.EINVAL, f"an adapter configuration has {len(text)} characters")
    try:
        settings = _settings.decode(text)
        config = msgspec.convert(settings, LoraConfig)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MemError(Errno.EINVAL, f"not an adapter configuration: {error}") from None
    if config.peft_type != "LORA":
        raise MemError(Errno.EINVAL, f"an adapter of type {config.peft_type!r} is no LoRA")
    if not all(1 <= rank <= _RANK_MAX for rank in config.ranks):
        raise MemError(Errno.EINVAL, f"a rank is within 1..{_RANK_MAX}")
    for name in _FOREIGN:
        if settings.get(name):
            raise MemError(Errno.EINVAL, f"more than pairs of factors is not taken: {name}")
    start = config.init_lora_weights
    if isinstance(start, str) and start not in _PLAIN_STARTS:
        raise MemError(Errno.EINVAL, f"init_lora_weights: {start!r} changes the base model")
    return config


def factors_of(config: LoraConfig, tensors: dict[str, Tensor]) -> dict[str, Factors]:
    """The factors of each module, by its name in the base model.

    Errors: EILSEQ (a tensor that is no factor, a factor without its other half, shapes or ranks
    that do not fit).
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors.values():
        match = _NAME.fullmatch(tensor.name)
        if match is None:
            raise _unfit(tensor.name, "is not a factor of a LoRA")
        if tensor.dtype not in _DTYPES:
            raise _unfit(tensor.name, f"has the dtype {tensor.dtype}")
        role = _role(match)
        of_module = modules.setdefault(match["module"].removeprefix(_PREFIX), {})
        if of_module.setdefault(role, tensor) is not tensor:
            raise _unfit(tensor.name, "is there twice")
    if not modules:
        raise MemError(Errno.EILSEQ, "the adapter has no tensors")
    return {name: _factors(config, name, roles) for name, roles in modules.items()}


def _role(match: re.Match[str]) -> str:
    if match["bias"]:
        return "bias"
    if match["magnitude"]:
        return "magnitude"
    return f"embedding {match['embedding']}" if match["embedding"] else match["factor"]


def _factors(config: LoraConfig, module: str, roles: dict[str, Tensor]) -> Factors:
    kind = "embedding " if "embedding A" in roles or "embedding B" in roles else ""
    a, b = roles.pop(f"{kind}A", None), roles.pop(f"{kind}B", None)
    magnitude, bias = roles.pop("magnitude", None), roles.pop("bias", None)
    if a is None or b is None or roles:
        raise _unfit(module, "does not have one factor A and one factor B")
    if min(len(a.shape), len(b.shape)) < 2 or a.shape[0] != b.shape[1]:
        raise _unfit(module, f"has factors of shapes {a.shape} and {b.shape}")
    if a.shape[0] not in config.ranks:
        raise _unfit(module, f"has rank {a.shape[0]}, the configuration says {config.r}")
    if bool(config.use_dora) is (magnitude is None):
        raise _unfit(module, "has a magnitude, or none, against what the configuration says")
    if bool(config.lora_bias) is (bias is None):
        raise _unfit(module, "has a bias, or none, against what the configuration says")
    if bias is not None and bias.shape != (b.shape[0],):
        raise _unfit(module, f"has a bias of shape {bias.shape}")
    return Factors(a, b, magnitude, bias)


def _unfit(name: str, problem: str) -> MemError:
    return MemError(Errno.EILSEQ, f"{name!r} {problem}")

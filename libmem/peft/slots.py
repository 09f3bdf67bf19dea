"""PEFT's adapters in one model: built, emptied, taken out again.

Owns what PEFT does to a model. Invariant: building an adapter succeeds or leaves every module and
every parameter's `requires_grad` as they were; after `unload` the model is as `attach` found it.

Used by `libmem.peft.adapters`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

import peft
from torch import nn

from libmem.abi.errors import Errno, MemError
from libmem.peft.weights import Place, layers_of, places_of

__all__ = ["Slot", "Slots"]


class Slot(NamedTuple):
    """One adapter of PEFT's, for cubes of one configuration."""

    name: str
    config: str
    places: dict[str, Place]


class Slots:
    """The adapters of PEFT's in a model. None at first; the wrapper is made with the first."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._peft: peft.PeftModel | None = None
        self._numbers = count()
        self._active: list[str] | None = None
        """What PEFT computes with; None: it has to be told."""
        self._trainable: list[nn.Parameter] = []
        """PEFT freezes the model; these are trainable again without it."""

    @property
    def model(self) -> peft.PeftModel:
        """PEFT's wrapper. Errors: EINVAL: there is no adapter."""
        if self._peft is None:
            raise MemError(Errno.EINVAL, "there is no adapter in the model yet")
        return self._peft

    def build(self, config: str) -> Slot:
        """A new adapter, without memory behind its parameters yet: to be filled before it computes.

        Errors: EINVAL: PEFT cannot build it in this model; which is then as it was.
        """
        name = f"cube{next(self._numbers)}"
        if self._peft is None:
            self._trainable = [each for each in self._model.parameters() if each.requires_grad]
        with _restored(self._model):
            try:
                self._add(name, config)
            except BaseException as error:
                if self._peft is None:
                    self._thaw()
                else:
                    self._peft.peft_config.pop(name, None)
                if not isinstance(error, Exception):
                    raise
                # Whatever PEFT makes of a configuration that is somebody else's.
                raise MemError(Errno.EINVAL, f"PEFT cannot build the adapter: {error}") from None
        base: nn.Module = self.model.get_base_model()
        return Slot(name, config, places_of(base, name))

    def _add(self, name: str, config: str) -> None:
        kept = {key: value for key, value in json.loads(config).items() if value is not None}
        # The numbers come from the payload: nothing is drawn for them before.
        overridden = {"inference_mode": True, "init_lora_weights": False}
        settings = peft.LoraConfig.from_peft_type(**{**kept, **overridden})
        self._active = None
        if self._peft is None:
            self._peft = peft.PeftModel(
                self._model, settings, name, autocast_adapter_dtype=False, low_cpu_mem_usage=True
            ).train(self._model.training)
        else:
            self._peft.add_adapter(name, settings, low_cpu_mem_usage=True)

    def activate(self, names: list[str]) -> None:
        """Have PEFT compute with these."""
        if self._peft is None or names == self._active:
            return
        # Never its way to switch all off: that would hold for each row of a batch, too. And
        # layer by layer: its own way walks through all modules, for some 50 ms.
        for layer in layers_of(self._peft):
            layer.set_adapter(names, inference_mode=True)
        self._active = names

    def delete(self, slot: Slot) -> None:
        """Take one adapter out; with the last the wrapper goes, too."""
        others = self.model.peft_config.keys() - {slot.name}
        if not others:
            self.unload()
            return
        self.activate([])  # of an active one PEFT would warn, and take another for it
        # The wrapper looks at this one's configuration with every call, whatever layers do.
        self.model.active_adapter = min(others)
        self.model.delete_adapter(slot.name)
        self._active = None

    def unload(self) -> None:
        """Put the model's own layers back. Idempotent."""
        if self._peft is not None:
            self._peft.unload()
            self._peft, self._active = None, None
            self._thaw()

    def _thaw(self) -> None:
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._trainable = []


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """If the body fails, every module has the children and parameters that it had."""
    before = [
        (module, dict(module._modules), dict(module._parameters)) for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, children, parameters in before:
            module._modules.clear()
            module._modules.update(children)
            module._parameters.clear()
            module._parameters.update(parameters)
        raise

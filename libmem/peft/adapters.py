"""Adapters of a daemon in a live model: mapped, switched between, paged.

Owns the slots: adapters of PEFT that are in the model, few at a time, each over the mapped memory
of a cube. Switching to a cube that is not in one puts its memory in the place of another's that has
the same configuration; only another configuration has PEFT build layers. Invariant: what a layer
computes with is the memory of the version that its slot names, whole; the daemon counts it as
mapped for as long.

Not for several threads at once, as the model itself. Public through `libmem.peft`.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Final, NamedTuple

import peft
from torch import nn
from transformers import PreTrainedModel

from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Advice
from libmem.client import Client
from libmem.hf.fingerprint import fingerprint_of_base
from libmem.mapping import Mapping
from libmem.peft.weights import Adapter, Place, layers_of, places_of, put

__all__ = ["Adapters", "attach"]

_BASE: Final = "__base__"
"""PEFT's word for a row without an adapter."""


class _Slot(NamedTuple):
    """One adapter of PEFT's."""

    name: str
    config: str
    places: dict[str, Place]


class _Held(NamedTuple):
    """A cube in a slot."""

    slot: _Slot
    memory: Mapping


class Adapters:
    """The adapters in one model. Made by `attach`; a context manager that takes them out again."""

    def __init__(
        self, client: Client, model: PreTrainedModel, slots: int, autocast_adapter_dtype: bool
    ) -> None:
        if slots < 1:
            raise MemError(Errno.EINVAL, "a model has at least one slot")
        self._client = client
        self._model = model
        self._slots_max = slots
        self._autocast = autocast_adapter_dtype
        self._peft: peft.PeftModel | None = None
        self._held: OrderedDict[str, _Held] = OrderedDict()
        """By the cube's name, least recently used first."""
        self._numbers = count()
        self._active: tuple[str, ...] = ()
        self._active_slots: list[str] | None = None
        """What PEFT computes with; None: it has to be told."""

    def __enter__(self) -> "Adapters":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.detach()

    @property
    def model(self) -> peft.PeftModel:
        """PEFT's wrapper of the model, for `generate(adapter_names=...)`.

        Errors: EINVAL: no adapter was used yet.
        """
        if self._peft is None:
            raise MemError(Errno.EINVAL, "there is no adapter in the model yet")
        return self._peft

    @property
    def active(self) -> tuple[str, ...]:
        """The cubes that the model computes with."""
        return self._active

    @property
    def loaded(self) -> tuple[str, ...]:
        """The cubes in slots, least recently used first."""
        return tuple(self._held)

    def use(self, names: str | Sequence[str] | None, *, allow_outdated: bool = False) -> None:
        """Compute with these cubes from now on, added up; None: with none.

        Looks at each cube's current version: a new one takes the old one's place.
        `allow_outdated`: adapters as well of which a source is not so any more.
        Errors: EMODEL (made for another model), EINVAL (for other layers, or more than there are
        slots), EOUTDATED, and those of `map`; then what was active stays so.
        """
        wanted = (names,) if isinstance(names, str) else tuple(names or ())
        self._load(wanted, allow_outdated=allow_outdated)
        self._activate(wanted)

    def batch(self, names: Iterable[str | None], *, allow_outdated: bool = False) -> list[str]:
        """One cube, or None, for each row of a batch: what `adapter_names` of `model.generate` and
        of `model(...)` takes. The cubes stay in their slots until others are used.

        Errors: as `use`; what is active takes slots as well.
        """
        rows = list(names)
        wanted = dict.fromkeys(name for name in rows if name is not None)
        every = tuple(dict.fromkeys((*self._active, *wanted)))
        self._load(every, allow_outdated=allow_outdated)
        self._activate(self._active)
        return [_BASE if name is None else self._held[name].slot.name for name in rows]

    def prefetch(self, names: Iterable[str]) -> None:
        """Have cubes brought into RAM that will be used soon. Errors: those of `advise`."""
        for name in names:
            self._client.advise(name, Advice.WILLNEED)

    def detach(self) -> None:
        """Take all adapters out of the model and give their memory back. Idempotent."""
        self._unload()
        while self._held:
            _let_go(self._held.popitem()[1])
        self._active = ()

    # -- slots ---------------------------------------------------------------------------------

    def _activate(self, names: tuple[str, ...]) -> None:
        slots = [self._held[name].slot.name for name in names]
        if slots != self._active_slots:
            self._tell(slots)
        self._active = names

    def _tell(self, slots: list[str]) -> None:
        """Have PEFT compute with these."""
        if self._peft is not None:
            # Never its way to switch all off: that would hold for each row of a batch, too. And
            # layer by layer: its own way walks through all modules, for some 50 ms.
            for layer in layers_of(self._peft):
                layer.set_adapter(slots, inference_mode=True)
            self._active_slots = slots

    def _load(self, names: tuple[str, ...], *, allow_outdated: bool) -> None:
        """Have all of these in slots. Errors: as `use`."""
        if len(set(names)) > self._slots_max:
            raise MemError(Errno.EINVAL, f"{len(set(names))} adapters, {self._slots_max} slots")
        digest = fingerprint_of_base(self._model) if names else ""
        try:
            for name in names:
                memory = self._client.map(
                    name, model=digest, is_private=True, allow_outdated=allow_outdated
                )
                self._load_one(name, memory, names)
        except BaseException:
            # Of what was active one may have had to make room already.
            self._activate(tuple(name for name in self._active if name in self._held))
            raise

    def _load_one(self, name: str, memory: Mapping, wanted: tuple[str, ...]) -> None:
        held = self._held.get(name)
        if held is not None and _is_same(held.memory, memory):
            memory.close()
            self._held.move_to_end(name)
            return
        try:
            adapter = Adapter.of(memory)
            before = self._gives_way(name, adapter.config, wanted)
            slot = self._held[before].slot if before in self._held else None
            if slot is None or slot.config != adapter.config:
                slot = self._new_slot(adapter.config)
            self._fill(slot, adapter, memory)
        except BaseException:
            memory.close()
            raise
        for gone in {before, name} & self._held.keys():
            self._remove(self._held.pop(gone), slot)
        self._held[name] = _Held(slot, memory)

    def _gives_way(self, name: str, config: str, wanted: tuple[str, ...]) -> str:
        """Whose slot a cube takes: its own, or one that is not wanted; empty where one is free."""
        if name in self._held or len(self._held) < self._slots_max:
            return name if name in self._held else ""
        free = [each for each in self._held if each not in wanted]
        idle = [each for each in free if each not in self._active] or free
        alike = [each for each in idle if self._held[each].slot.config == config]
        return (alike or idle)[0]

    def _fill(self, slot: _Slot, adapter: Adapter, memory: Mapping) -> None:
        try:
            put(adapter, memory, slot.places, autocast=self._autocast)
        except MemError:
            if all(held.slot is not slot for held in self._held.values()):
                self._delete(slot)
            raise

    def _remove(self, held: _Held, taken: _Slot) -> None:
        """A cube left its slot, which now is `taken`, or nobody's."""
        if held.slot is not taken:
            self._delete(held.slot)
        _let_go(held)

    def _delete(self, slot: _Slot) -> None:
        others = self.model.peft_config.keys() - {slot.name}
        if not others:
            self._unload()
            return
        self._tell([])  # of an active one PEFT would warn, and take another for it
        # The wrapper looks at this one's configuration with every call, whatever layers do.
        self.model.active_adapter = min(others)
        self.model.delete_adapter(slot.name)

    def _unload(self) -> None:
        """Put the model's own layers back."""
        if self._peft is not None:
            self._peft.unload()
            self._peft, self._active_slots = None, None

    def _new_slot(self, config: str) -> _Slot:
        name = f"cube{next(self._numbers)}"
        kept = {key: value for key, value in json.loads(config).items() if value is not None}
        settings = peft.LoraConfig.from_peft_type(**{**kept, "inference_mode": True})
        try:
            if self._peft is None:
                self._peft = peft.PeftModel(
                    self._model, settings, name, autocast_adapter_dtype=False,
                    low_cpu_mem_usage=True,
                ).train(self._model.training)  # fmt: skip
            else:
                self._peft.add_adapter(name, settings, low_cpu_mem_usage=True)
        except (ValueError, TypeError) as error:
            raise MemError(Errno.EINVAL, f"PEFT cannot build the adapter: {error}") from None
        self._active_slots = None
        base: nn.Module = self._peft.get_base_model()
        return _Slot(name, config, places_of(base, name))


def attach(
    client: Client,
    model: PreTrainedModel,
    *,
    slots: int = 8,
    autocast_adapter_dtype: bool = True,
) -> Adapters:
    """Have cubes as adapters in a model.

    `slots`: how many are in the model at a time; any number can be used in turn.
    `autocast_adapter_dtype`: as PEFT's: float16 and bfloat16 adapters compute in float32; False: in
    the type of their layer. What has that type already is not copied.
    """
    return Adapters(client, model, slots, autocast_adapter_dtype)


def _is_same(one: Mapping, other: Mapping) -> bool:
    return (one.id, one.version) == (other.id, other.version)


def _let_go(held: _Held) -> None:
    """What is no adapter's any more; views that others keep of it stay valid."""
    try:
        held.memory.close()
    except MemError as error:
        if error.errno is not Errno.EBUSY:
            raise

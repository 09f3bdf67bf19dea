"""Adapters of a daemon in a live model: mapped, switched between, paged.

Owns the slots: adapters of PEFT that are in the model, few at a time, each over the mapped memory
of a cube. Switching to a cube that is not in one puts its memory in the place of another's that has
the same configuration; only another configuration has PEFT build layers. Invariant: what a layer
computes with is the memory of the version that its slot names, whole; the daemon counts it as
mapped for as long.

Not for several threads at once, as the model itself. Public through `libmem.peft`.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple

import peft
from transformers import PreTrainedModel

from libmem.abi.errors import Errno, MemError
from libmem.abi.structs import Advice
from libmem.client import Client
from libmem.hf.fingerprint import fingerprint_of_base
from libmem.mapping import Mapping
from libmem.peft.slots import Slot, Slots
from libmem.peft.weights import Adapter, Parameter, parameters_of, put

__all__ = ["Adapters", "attach"]

_BASE: Final = "__base__"
"""PEFT's word for a row without an adapter."""


class _Held(NamedTuple):
    """A cube in a slot."""

    slot: Slot
    memory: Mapping


class _Coming(NamedTuple):
    """A cube that is to be in a slot."""

    name: str
    slot: Slot
    memory: Mapping
    parameters: list[Parameter]
    before: str
    """The cube whose place it takes; empty: none's."""


class Adapters:
    """The adapters in one model. Made by `attach`; a context manager that takes them out again."""

    def __init__(
        self, client: Client, model: PreTrainedModel, slots: int, autocast_adapter_dtype: bool
    ) -> None:
        if slots < 1:
            raise MemError(Errno.EINVAL, "a model has at least one slot")
        self._client = client
        self._model = model
        self._slots = Slots(model)
        self._slots_max = slots
        self._autocast = autocast_adapter_dtype
        self._held: OrderedDict[str, _Held] = OrderedDict()
        """By the cube's name, least recently used first."""
        self._active: tuple[str, ...] = ()

    def __enter__(self) -> "Adapters":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.detach()

    @property
    def model(self) -> peft.PeftModel:
        """PEFT's wrapper of the model, for `generate(adapter_names=...)`.

        Errors: EINVAL: no adapter was used yet.
        """
        return self._slots.model

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
        self._slots.unload()
        while self._held:
            _let_go(self._held.popitem()[1].memory)
        self._active = ()

    # -- slots ---------------------------------------------------------------------------------

    def _activate(self, names: tuple[str, ...]) -> None:
        self._slots.activate([self._held[name].slot.name for name in names])
        self._active = names

    def _load(self, names: tuple[str, ...], *, allow_outdated: bool) -> None:
        """Have all of these in slots, or leave all as it was. Errors: as `use`."""
        wanted = dict.fromkeys(names)
        if len(wanted) > self._slots_max:
            raise MemError(Errno.EINVAL, f"{len(wanted)} adapters, {self._slots_max} slots")
        digest = fingerprint_of_base(self._model) if wanted else ""
        coming: list[_Coming] = []
        with ExitStack() as undo:
            undo.callback(lambda: self._activate(self._active))
            for name in wanted:
                memory = self._client.map(
                    name, model=digest, is_private=True, allow_outdated=allow_outdated
                )
                held = self._held.get(name)
                if held is not None and _is_same(held.memory, memory):
                    memory.close()
                    self._held.move_to_end(name)
                    continue
                undo.callback(_let_go, memory)
                coming.append(self._coming(name, memory, wanted, coming, undo))
                undo.callback(coming.clear)  # first: whoever keeps the error keeps this frame
            undo.pop_all()
        for each in coming:
            self._place(each)

    def _coming(
        self, name: str, memory: Mapping, wanted: Collection[str], others: list[_Coming],
        undo: ExitStack,
    ) -> _Coming:  # fmt: skip
        """A slot for this cube, with nothing changed in it yet."""
        adapter = Adapter.of(memory)
        before = self._gives_way(name, adapter.config, wanted, others)
        slot = self._held[before].slot if before in self._held else None
        if slot is None or slot.config != adapter.config:
            slot = self._slots.build(adapter.config)
            undo.callback(self._slots.delete, slot)
        parameters = parameters_of(adapter, memory, slot.places, autocast=self._autocast)
        return _Coming(name, slot, memory, parameters, before)

    def _gives_way(
        self, name: str, config: str, wanted: Collection[str], others: list[_Coming]
    ) -> str:
        """Whose slot a cube takes: its own, or one that is not wanted; empty where one is free."""
        if name in self._held:
            return name
        gone = {each.before for each in others}
        if len(self._held) + sum(not each.before for each in others) < self._slots_max:
            return ""
        free = [each for each in self._held if each not in wanted and each not in gone]
        idle = [each for each in free if each not in self._active] or free
        alike = [each for each in idle if self._held[each].slot.config == config]
        return (alike or idle)[0]

    def _place(self, coming: _Coming) -> None:
        put(coming.parameters)
        if coming.before:
            gone = self._held.pop(coming.before)
            if gone.slot is not coming.slot:
                self._slots.delete(gone.slot)
            _let_go(gone.memory)
        self._held[coming.name] = _Held(coming.slot, coming.memory)


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


def _let_go(memory: Mapping) -> None:
    """What is no adapter's any more; what others keep of it stays valid, and mapped, until then."""
    try:
        memory.close()
    except MemError as error:
        if error.errno is not Errno.EBUSY:
            raise

"""`lora-page`: adapters swapped into a live model, many more of them than fit into RAM.

Some hundred adapters of a real model are cubes of a daemon whose RAM holds a tenth of them. They
are asked for as popular things are (Zipf), and each is put into the model by `libmem.peft`. The
peer, in the same process and the same rounds, is PEFT's `load_adapter` from a folder, whose files
the operating system has in its cache; both models must then compute the same logits to the last
bit.
"""

import shutil
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from libmem import Client
from libmem.abi.errors import Errno, MemError
from memosd.tools.bench.daemon import private_daemon
from memosd.tools.bench.prompts import load_model, prompt_of
from memosd.tools.bench.report import Report, at_least, at_most, row
from memosd.tools.bench.samples import percentile, sample

__all__ = ["FULL", "QUICK", "Plan", "measure"]

_NAMESPACE: Final = "/bench"
_SKEW: Final = 1.0
_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class Plan:
    adapters: int = 200
    resident: int = 20
    """So many fit into the daemon's RAM."""
    uses: int = 400
    compared: int = 12
    """Uses at which PEFT loads the same adapter."""
    rank: int = 8
    slots: int = 4


FULL = Plan()
QUICK = Plan(adapters=20, resident=6, uses=40, compared=3, rank=2, slots=2)


@dataclass
class _Found:
    """Seconds of each kind of use."""

    swapped: list[float] = field(default_factory=list)
    """Into the model, out of RAM."""
    faulted: list[float] = field(default_factory=list)
    """The same, where it had to come from disk."""
    kept: int = 0
    """It was in the model already."""
    peft: list[float] = field(default_factory=list)
    differing: int = 0


def measure(plan: Plan, directory: Path) -> Report:
    """Write the adapters, then use them in turn."""
    # PEFT asks transformers for an old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    folder = directory / "memos-bench-adapter"
    try:
        size_bytes = _save(load_model(), plan.rank, folder)
        config = (
            f"[ram]\nbudget_bytes = {plan.resident * (size_bytes + (1 << 16))}\n"
            f"[disk]\nbudget_bytes = {4 * plan.adapters * size_bytes}\n"
            '[listen]\nmode = "0600"\n'
        )
        with private_daemon(directory, config=config) as daemon:
            daemon.start()
            with daemon.connect(_TIMEOUT_S) as client:
                client.make_namespace(_NAMESPACE)
                _write(client, plan.adapters, folder)
                found = _use(client, plan, folder)
            daemon.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _report(plan, found, size_bytes)


def _report(plan: Plan, found: _Found, size_bytes: int) -> Report:
    swap_s, peft_s = sample(found.swapped), sample(found.peft)
    uses = len(found.swapped) + len(found.faulted)
    return Report(
        "lora-page",
        (
            row(
                "swap_ratio", peft_s.median / swap_s.median,
                "PEFT's load_adapter / swapped in from RAM, p50", at_least(5),
            ),
            row("differing", found.differing, "adapters whose logits are not PEFT's", at_most(0)),
            row("swap_ms_p50", swap_s.median * 1e3, "into the model, resident in RAM"),
            row("swap_ms_p99", percentile(found.swapped, 0.99) * 1e3, "the same"),
            row("fault_ms_p50", sample(found.faulted).median * 1e3, "the same, from disk"),
            row("peft_ms_p50", peft_s.median * 1e3, "its files in the system's cache"),
            row("resident_share", len(found.swapped) / uses, "of the swaps"),
            row("kept_share", found.kept / plan.uses, "in the model already"),
        ),
        (
            f"{plan.adapters} adapters of {size_bytes / 1e6:.1f} MB (SmolLM2-135M, rank "
            f"{plan.rank}, all linear layers) over RAM for {plan.resident}, {plan.slots} slots",
            f"{plan.uses} uses, Zipf {_SKEW:g}; PEFT loads {plan.compared} of them as well",
        ),
    )  # fmt: skip


def _save(model: Any, rank: int, folder: Path) -> int:
    """An adapter with random numbers, as PEFT saves it; its size."""
    import copy

    import peft

    settings = peft.LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(copy.deepcopy(model), settings).save_pretrained(folder)
    return (folder / "adapter_model.safetensors").stat().st_size


def _write(client: Client, count: int, folder: Path) -> None:
    """So many adapters that differ in every number."""
    from libmem import peft

    weights = folder / "adapter_model.safetensors"
    digest = peft.fingerprint_of_base(load_model())
    saved = bytearray(weights.read_bytes())
    data = np.frombuffer(saved, np.float32, offset=8 + int.from_bytes(saved[:8], "little"))
    random = np.random.default_rng(0)
    for number in range(count):
        data[:] = random.standard_normal(len(data), np.float32) * 0.02
        weights.write_bytes(saved)
        peft.import_folder(client, _name(number), folder, digest)


def _name(number: int) -> str:
    return f"{_NAMESPACE}/{number}"


def _use(client: Client, plan: Plan, folder: Path) -> _Found:
    from libmem import peft

    model, found = load_model(), _Found()
    reference = _reference(model, folder)
    shares = 1 / np.arange(1, plan.adapters + 1) ** _SKEW
    order = np.random.default_rng(1).choice(plan.adapters, plan.uses, p=shares / shares.sum())
    compare_at = set(np.linspace(0, plan.uses - 1, plan.compared, dtype=int).tolist())
    with peft.attach(client, model, slots=plan.slots) as adapters:
        for turn, number in enumerate(order.tolist()):
            name = _name(number)
            is_kept, tiers = name in adapters.loaded, client.stat(name).tiers
            before = time.perf_counter()
            adapters.use(name)
            took_s = time.perf_counter() - before
            # The first has PEFT build its layers, once.
            if is_kept:
                found.kept += 1
            elif turn >= plan.slots:
                (found.swapped if "ram" in tiers else found.faulted).append(took_s)
            if turn in compare_at:
                peft.export_folder(client, name, folder)
                logits = _logits(model)
                peft_s, wanted = _load_with_peft(reference, folder)
                found.peft.append(peft_s)
                found.differing += not np.array_equal(wanted, logits)
    if not found.swapped or not found.faulted:
        raise MemError(Errno.EIO, "no adapter was swapped in from RAM, or none from disk")
    return found


def _reference(model: Any, folder: Path) -> Any:
    """A copy of the model with an adapter in it, so that PEFT has wrapped it before it counts."""
    import copy

    import peft

    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder)


def _load_with_peft(reference: Any, folder: Path) -> tuple[float, Any]:
    """Seconds of PEFT's way, and the logits afterwards."""
    before = time.perf_counter()
    reference.load_adapter(folder, "next")
    reference.set_adapter("next")
    took_s = time.perf_counter() - before
    logits = _logits(reference)
    reference.set_adapter("default")
    reference.delete_adapter("next")
    return took_s, logits


def _logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(prompt_of(32)).logits.numpy()

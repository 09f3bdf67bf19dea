"""Memories that change type in a real daemon, by a real worker with a small model."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import libmem
from libmem.abi.errors import Errno, MemError
from libmem.abi.learning import Gate
from libmem.abi.structs import CubeType, Durability
from libmem.abi.transitions import (
    DistilRecipe,
    PrefillRecipe,
    ReciteRecipe,
    TrainRecipe,
    TransitionStat,
    TransitionState,
)
from tests.e2e.actor import Actor, require_other_users
from tests.e2e.daemon import Daemon, eventually, running
from tests.e2e.modelprocess import require_transformers
from tests.e2e.tinymodel import make_folder

CONFIG = '[transitions]\nlanguage_model = "{}"\nthreads = 1\n'
ANY = Gate(trained_min=0, heldout_min=0, perplexity_max=1e6)
"""Passed by whatever was trained."""
ABOUT_THE_CAT = {
    "questions": [{"question": "Who is out?", "answer": "cat", "held_out": ["Who left?"]}]
}
TEXT = "The kettle is on the left shelf. " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_transformers()
    return make_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.config = CONFIG.format(folder)
    with running(daemon):
        with daemon.connect() as client:
            client.make_namespace("/t")
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[libmem.Client]:
    with daemon.connect() as client:
        client.write("/t/text", TEXT)
        yield client
        for stat in client.list("/t"):
            client.unlink(stat.name)


def model_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_prefilled_text_is_what_the_model_would_compute(
    client: libmem.Client, folder: Path
) -> None:
    import torch
    from transformers import AutoTokenizer

    import libmem.hf

    client.write("/t/more", "And the cat is out.")
    stat = client.transmute("/t/kv", ["/t/text", "/t/more"], PrefillRecipe(separator="\n"))
    assert (stat.state, stat.version) == (TransitionState.DONE, 1)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT + "\nAnd the cat is out.")["input_ids"]
    assert stat.quality["tokens"] == len(ids)
    model = model_of(folder)
    cache = libmem.hf.map_cache(client, "/t/kv", model, token_ids=[*ids, 5])
    with torch.inference_mode():
        plain = model(torch.tensor([ids])).past_key_values
    for mapped, own in zip(cache.layers, plain.layers, strict=True):
        torch.testing.assert_close(mapped.keys, own.keys)
        torch.testing.assert_close(mapped.values, own.values)
    made = client.stat("/t/kv")
    assert made.parents == ("/t/text@v1", "/t/more@v1")
    assert made.attributes["derivation"] == {
        "recipe": "prefill", "settings": {"separator": "\n"},
    }  # fmt: skip
    assert made.durability is Durability.CACHE


def test_it_falls_with_its_text(client: libmem.Client) -> None:
    client.transmute("/t/kv", ["/t/text"], PrefillRecipe(durability=Durability.DURABLE))
    client.transmute("/t/back", ["/t/kv"], ReciteRecipe())
    reply = client.write("/t/text", "Something else.")
    assert reply.receipt is not None
    assert {each.name for each in reply.receipt.fallen} == {"/t/kv", "/t/back"}
    for name in ("/t/kv", "/t/back"):
        with pytest.raises(MemError) as refused:
            client.read(name)
        assert refused.value.errno is Errno.EOUTDATED


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_cache_recites_its_text(client: libmem.Client, is_chat: bool) -> None:
    client.transmute("/t/kv", ["/t/text"], PrefillRecipe(is_chat=is_chat))
    stat = client.transmute("/t/back", ["/t/kv"], ReciteRecipe())
    wanted = f"[system] {TEXT}\n" if is_chat else TEXT
    assert client.read("/t/back").decode() == wanted
    assert client.stat("/t/back").type is CubeType.PLAINTEXT
    assert stat.quality["is_exact"] == 1


def test_a_cache_has_the_precision_asked_for(client: libmem.Client, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    import libmem.hf
    from libmem.abi.kv import KvDtype

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    digest = libmem.hf.fingerprint(model)
    client.transmute("/t/kv", ["/t/text"], PrefillRecipe(dtype=KvDtype.BFLOAT16, model=digest))
    assert libmem.hf.map_cache(client, "/t/kv", model).get_seq_length() == len(TEXT)
    client.transmute("/t/back", ["/t/kv"], ReciteRecipe())
    assert client.read("/t/back").decode() == TEXT


REFUSED: list[tuple[str, str, Any, Errno]] = [
    ("/t/other", "text", PrefillRecipe(model="0" * 64), Errno.EMODEL),
    ("/t/other", "", PrefillRecipe(), Errno.EINVAL),
    ("/t/other", "x" * 5000, PrefillRecipe(), Errno.EINVAL),
    ("/t/other", "text", ReciteRecipe(), Errno.EOPNOTSUPP),
]


@pytest.mark.parametrize(("name", "text", "recipe", "errno"), REFUSED, ids=str)
def test_what_cannot_be_made_is_refused(
    client: libmem.Client, name: str, text: str, recipe: Any, errno: Errno
) -> None:
    client.write("/t/source", text)
    with pytest.raises(MemError) as refused:
        client.transmute(name, ["/t/source"], recipe)
    assert refused.value.errno is errno
    with pytest.raises(MemError):
        client.stat(name)


def test_a_cache_of_another_model_is_not_recited(client: libmem.Client) -> None:
    import libmem.hf
    from tests.libmem.hf.models import full_cache, make_model, prompt

    other, ids = make_model("llama", seed=1), prompt(20)
    libmem.hf.save_cache(client, "/t/other", other, full_cache(other, ids), ids)
    with pytest.raises(MemError) as refused:
        client.transmute("/t/back", ["/t/other"], ReciteRecipe())
    assert refused.value.errno is Errno.EMODEL


def test_ids_that_are_no_tokens_are_refused(client: libmem.Client, folder: Path) -> None:
    import libmem.hf
    from tests.libmem.hf.models import full_cache, prompt

    model = model_of(folder)
    cache = full_cache(model, prompt(20))
    libmem.hf.save_cache(client, "/t/forged", model, cache, [4_000_000_000] * 20)
    with pytest.raises(MemError) as refused:
        client.transmute("/t/back", ["/t/forged"], ReciteRecipe())
    assert refused.value.errno is Errno.EILSEQ


def test_a_source_changed_meanwhile_refuses_the_result(client: libmem.Client) -> None:
    worker = started(client)
    os.kill(worker, signal.SIGSTOP)
    try:
        number = client.transmute("/t/kv", ["/t/text"], PrefillRecipe(), wait=False).number
        client.write("/t/text", "Something else.")
    finally:
        os.kill(worker, signal.SIGCONT)
    with pytest.raises(MemError) as refused:
        client.wait_transition(number)
    assert refused.value.errno is Errno.EOUTDATED
    with pytest.raises(MemError) as gone:
        client.stat("/t/kv")
    assert gone.value.errno is Errno.ENOENT


def test_a_killed_worker_is_replaced_and_the_work_done(client: libmem.Client) -> None:
    worker = started(client)
    number = in_hand(client, worker)
    os.kill(worker, signal.SIGKILL)
    assert client.wait_transition(number).state is TransitionState.DONE
    assert started(client) != worker


def test_a_cancelled_one_leaves_nothing(client: libmem.Client) -> None:
    worker = started(client)
    os.kill(worker, signal.SIGSTOP)
    number = client.transmute("/t/kv", ["/t/text"], PrefillRecipe(), wait=False).number
    client.cancel_transition(number)
    os.kill(worker, signal.SIGCONT)
    with pytest.raises(MemError) as canceled:
        client.wait_transition(number)
    assert canceled.value.errno is Errno.ECANCELED
    client.transmute("/t/after", ["/t/text"], PrefillRecipe())
    with pytest.raises(MemError):
        client.stat("/t/kv")


def in_hand(client: libmem.Client, worker: int) -> int:
    """A transition that the worker has got, and is stopped before it did anything about it."""
    while True:
        os.kill(worker, signal.SIGSTOP)
        number = client.transmute("/t/kv", ["/t/text"], PrefillRecipe(), wait=False).number
        if look(client, number).began_ns:
            return number
        os.kill(worker, signal.SIGCONT)  # it had not asked for work again yet
        client.wait_transition(number)


def look(client: libmem.Client, number: int) -> TransitionStat:
    return next(stat for stat in client.transitions() if stat.number == number)


def started(client: libmem.Client) -> int:
    """The worker's process id, once it has done something."""
    client.transmute("/t/first", ["/t/text"], PrefillRecipe())
    (worker,) = client.info().workers
    return worker.pid


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_lora_knows_its_texts_and_falls_with_them(client: libmem.Client, folder: Path) -> None:
    import torch

    import libmem.peft

    client.write("/t/fact", "The cat is out.", attributes=ABOUT_THE_CAT)
    stat = client.transmute("/t/lora", ["/t/fact"], TrainRecipe(gate=ANY, rank=4))
    assert stat.quality.keys() == {"loss", "trained_exact", "heldout_exact", "perplexity_ratio"}
    made = client.stat("/t/lora")
    assert (made.type, made.parents) == (CubeType.PARAMETRIC, ("/t/fact@v1",))
    derivation = made.attributes["derivation"]
    assert derivation["recipe"] == "train"
    assert derivation["quality"] == {k: v for k, v in stat.quality.items() if k != "loss"}
    model, ids = model_of(folder), torch.arange(9)[None]
    plain = model(ids).logits
    with libmem.peft.attach(client, model) as adapters:
        adapters.use("/t/lora")
        assert not torch.equal(model(ids).logits, plain)
    assert not any(daemon_scratch(client).iterdir())
    client.write("/t/fact", "The cat is in.")
    with pytest.raises(MemError) as outdated, libmem.peft.attach(client, model) as adapters:
        adapters.use("/t/lora")
    assert outdated.value.errno is Errno.EOUTDATED


def daemon_scratch(client: libmem.Client) -> Path:
    return Path(client.info().data_dir) / "scratch"


def test_a_gate_that_is_not_passed_refuses_the_adapter(client: libmem.Client) -> None:
    client.write("/t/fact", "The cat is out.", attributes=ABOUT_THE_CAT)
    strict = TrainRecipe(gate=Gate(trained_min=1.0, heldout_min=1.0), rank=1, learning_rate=1e-6)
    with pytest.raises(MemError) as refused:
        client.transmute("/t/lora", ["/t/fact"], strict)
    assert refused.value.errno is Errno.EGATE
    assert "heldout_exact 0.000 < 1" in refused.value.message
    latest = list(client.transitions())[-1]
    assert latest.quality["heldout_exact"] == 0
    with pytest.raises(MemError) as missing:
        client.stat("/t/lora")
    assert missing.value.errno is Errno.ENOENT


def test_a_cache_becomes_an_adapter(client: libmem.Client) -> None:
    client.transmute("/t/kv", ["/t/text"], PrefillRecipe())
    recipe = DistilRecipe(divergence_max=1e6, perplexity_max=1e6, steps=4, texts=8, rank=2)
    stat = client.transmute("/t/lora", ["/t/kv"], recipe)
    assert stat.quality["divergence_before"] > 0
    made = client.stat("/t/lora")
    assert (made.type, made.parents) == (CubeType.PARAMETRIC, ("/t/kv@v1",))
    receipt = client.write("/t/text", "Something else.").receipt
    assert receipt is not None
    assert {each.name for each in receipt.fallen} == {"/t/kv", "/t/lora"}
    assert client.stat("/t/lora").outdated


def test_a_cache_that_is_not_learned_is_refused(client: libmem.Client) -> None:
    client.transmute("/t/kv", ["/t/text"], PrefillRecipe())
    for source, recipe, errno in (
        ("/t/kv", DistilRecipe(divergence_max=0.0, steps=1, texts=4, rank=1), Errno.EGATE),
        ("/t/text", DistilRecipe(), Errno.EOPNOTSUPP),
    ):
        with pytest.raises(MemError) as refused:
            client.transmute("/t/lora", [source], recipe)
        assert refused.value.errno is errno


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"questions": "what?"},
        {"questions": [{"question": "a?", "answer": "b"}, {"question": "A?", "answer": "c"}]},
        {"questions": [{"question": "a" * 300, "answer": "b"}]},
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_taught_is_refused(
    client: libmem.Client, attributes: dict[str, Any]
) -> None:
    client.write("/t/fact", "Too short.", attributes=attributes)
    with pytest.raises(MemError) as refused:
        client.transmute("/t/lora", ["/t/fact"], TrainRecipe(gate=ANY))
    assert refused.value.errno is Errno.EINVAL


def test_a_death_in_the_middle_of_training_leaves_no_half_adapter(client: libmem.Client) -> None:
    client.write("/t/fact", "The cat is out.", attributes=ABOUT_THE_CAT)
    worker = started(client)
    recipe = TrainRecipe(gate=ANY, rank=4, rounds=40.0)
    number = client.transmute("/t/lora", ["/t/fact"], recipe, wait=False).number
    eventually(lambda: look(client, number).note == "training", "it is trained")
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(MemError):
        client.stat("/t/lora")
    assert client.wait_transition(number).state is TransitionState.DONE
    assert client.stat("/t/lora").version == 1


STRANGER = """
from libmem.abi.transitions import PrefillRecipe
client.make_namespace("/mine")
client.write("/mine/text", "mine")
say(errno_of(client.transmute, "/mine/kv", ["/t/text"], PrefillRecipe()))
say(errno_of(client.transmute, "/t/kv", ["/mine/text"], PrefillRecipe()))
say(errno_of(client.transmute, "/mine/kv", ["/mine/text"], PrefillRecipe()))
say(client.stat("/mine/kv").governance.owner_uid)
say(len(list(client.transitions())))
"""


def test_it_reads_and_writes_as_who_asked(folder: Path) -> None:
    require_other_users()
    daemon = Daemon()
    daemon.config = '[listen]\nmode = "0666"\n' + CONFIG.format(folder)
    daemon.folder.chmod(0o755)
    with running(daemon), daemon.connect() as client:
        client.make_namespace("/t")
        client.write("/t/text", TEXT)
        client.transmute("/t/own", ["/t/text"], PrefillRecipe())
        with Actor(daemon, STRANGER, 12345, (12345,)) as stranger:
            words = [stranger.hear() for _ in range(5)]
            assert words == ["EACCES", "EACCES", "OK", "12345", "1"]
            stranger.end()


def test_without_a_model_the_daemon_says_so() -> None:
    daemon = Daemon()
    with running(daemon), daemon.connect() as client:
        client.make_namespace("/t")
        client.write("/t/text", TEXT)
        with pytest.raises(MemError) as refused:
            client.transmute("/t/kv", ["/t/text"], PrefillRecipe())
        assert refused.value.errno is Errno.EOPNOTSUPP


def test_a_model_that_is_none_is_told(tmp_path: Path) -> None:
    require_transformers()
    daemon = Daemon()
    daemon.config = CONFIG.format(tmp_path)
    with running(daemon), daemon.connect() as client:
        client.make_namespace("/t")
        client.write("/t/text", TEXT)
        with pytest.raises(MemError) as refused:
            client.transmute("/t/kv", ["/t/text"], PrefillRecipe())
        assert refused.value.errno is Errno.EOPNOTSUPP
        assert "cannot load the tokenizer" in refused.value.message
        assert any(each.startswith("transitions: ") for each in client.info().notices)

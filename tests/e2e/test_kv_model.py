"""What a model makes of stored KV caches: int8 below RAM, and a model with real weights."""

from pathlib import Path

import pytest

import libmem
from tests.e2e.daemon import Daemon
from tests.e2e.modelprocess import ModelProcess, require_transformers


@pytest.fixture(autouse=True)
def _transformers() -> None:
    require_transformers()


LOSSY = """
from libmem.abi.kv import KvForm, KvStored
model = make_model("llama")
own = prefill(model, TEXT)
stored = KvStored(KvForm.INT8)
libmem.hf.save_cache(client, "/t/kv", model, own, TEXT, stored=stored)
before = libmem.hf.map_cache(client, "/t/kv", model)
exact = digest(before)
say(exact == digest(own))
say(errno_of(client.evict, "/t/kv"))
"""
EVICTED = """
model = make_model("llama")
own = prefill(model, TEXT)
cache = libmem.hf.map_cache(client, "/t/kv", model, token_ids=TEXT)
say(digest(cache))
expected = logits(model, own, MORE).log_softmax(-1)
found = logits(model, cache, MORE).log_softmax(-1)
say((expected.exp() * (expected - found)).sum(-1).mean().item())
# What stands on it stands on what was mapped.
libmem.hf.fork(client, "/t/more", cache, LONGER)
"""


def test_int8_is_close_and_what_was_mapped_stays_exact(
    shared: Daemon, client: libmem.Client
) -> None:
    with ModelProcess(shared, LOSSY + "hear()\nsay(digest(before) == exact)\n") as first:
        assert [first.hear(), first.hear()] == [True, "EBUSY"]
        client.sync()
        form = client.stat("/t/kv").stored
        assert form is not None
        assert form.form == "int8"
        assert 0 < form.error < 0.02
        first.tell()
        assert first.hear() is True
        first.end()
    client.evict("/t/kv")
    with ModelProcess(shared, EVICTED) as second, ModelProcess(shared, EVICTED) as third:
        rows, divergence = second.hear(), second.hear()
        assert 0 < divergence < 0.01
        assert (third.hear(), third.hear()) == (rows, divergence)


CHAT = """
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = hear()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
system = "You are a careful clerk. You answer in few words. " * 12
said = [{"role": "system", "content": system}]


def converse(reply_to):
    said = [{"role": "system", "content": system}]
    for question in ("What is the capital of France?", "And of Italy?"):
        said.append({"role": "user", "content": question})
        prompt = tokenizer.apply_chat_template(
            said, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = prompt["input_ids"]
        text = reply_to(ids)
        reply = tokenizer.decode(text[ids.shape[1] :], skip_special_tokens=True)
        said.append({"role": "assistant", "content": reply})
    return [each["content"] for each in said[1:]]

plain = hear() or converse(lambda ids: answer(model, ids))
with libmem.hf.attach(model, client, namespace="/t") as attached:
    say((plain, converse(lambda ids: ask(attached, model, ids))))
    stats = attached.stats
    say((stats.hits, stats.stored, stats.problems))
    say(stats.tokens_prefilled)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_share_a_conversation(
    shared: Daemon, client: libmem.Client, smollm2: Path
) -> None:
    said: list[str] = []
    for counts, prefilled_max in (((1, 1, 0), 200), ((2, 0, 0), 30)):
        with ModelProcess(shared, CHAT) as process:
            process.tell(str(smollm2))
            process.tell(said)
            said, replies = process.hear()
            assert replies == said
            assert process.hear() == counts
            assert process.hear() < prefilled_max
            process.end()

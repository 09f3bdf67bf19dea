"""Several processes, one KV cache: computed once, mapped by all, changed by nobody."""

import pytest

import libmem
from libmem.abi.digest import digest_of
from tests.e2e.daemon import Daemon
from tests.e2e.modelprocess import ModelProcess, require_transformers


@pytest.fixture(autouse=True)
def _transformers() -> None:
    require_transformers()


ASK = """
model = make_model("llama")
plain = answer(model, TEXT)
with attach(model, client) as attached:
    same = ask(attached, model, TEXT) == plain
    stats = attached.stats
say((plain, same, stats.hits, stats.tokens_mapped, stats.stored, stats.problems))
"""


def test_what_one_computed_others_map(shared: Daemon, client: libmem.Client) -> None:
    with ModelProcess(shared, ASK) as first:
        text, *found = first.hear()
        assert found == [True, 0, 0, 1, 0]
        first.end()
    with ModelProcess(shared, ASK) as second, ModelProcess(shared, ASK) as third:
        for other in (second, third):
            assert other.hear() == (text, True, 1, 99, 0, 0)
            other.end()
    (cube,) = client.list("/t", is_recursive=True)
    assert cube.attributes["kv"]["tokens"] == len(text) - 1
    assert cube.behaviour.maps == 2


def test_two_that_compute_the_same_store_it_once(shared: Daemon, client: libmem.Client) -> None:
    program = """
model = make_model("llama")

def together(*args, **options):
    say("computed")
    hear()
    return create(*args, **options)

with attach(model, client) as attached:
    storing = attached._shelf._storing
    create, storing.create = storing.create, together
    ask(attached, model, TEXT)
    stats = attached.stats
say((stats.stored, stats.hits, stats.problems))
"""
    with ModelProcess(shared, program) as one, ModelProcess(shared, program) as other:
        for each in (one, other):
            assert each.hear() == "computed"
        for each in (one, other):
            each.tell()
        assert sorted([one.hear(), other.hear()]) == [(0, 0, 0), (1, 0, 0)]
        for each in (one, other):
            each.end()
    assert [stat.version for stat in client.list("/t", is_recursive=True)] == [1]


STORE = """
model = make_model("llama")
own = prefill(model, TEXT)
libmem.hf.save_cache(client, "/t/kv", model, own, TEXT)
say(digest(own))
"""
WRITE = """
model = make_model("llama")
cache = libmem.hf.map_cache(client, "/t/kv", model, token_ids=TEXT)
say(digest(cache))
cut, seed = hear()
cache.crop(-cut)
logits(model, cache, prompt(cut + 10, seed=seed))
own = prefill(model, torch.cat([TEXT[:, : 100 - cut], prompt(cut + 10, seed=seed)], 1))
for layer, mine in zip(cache.layers, own.layers):
    torch.testing.assert_close(layer.keys, mine.keys)
written = digest(cache)
say(written)
hear()
say(digest(cache) == written)
"""
LOOK = """
model = make_model("llama")
cache = libmem.hf.map_cache(client, "/t/kv", model, token_ids=TEXT)
say(digest(cache))
"""


def test_nobody_sees_what_another_writes(shared: Daemon, client: libmem.Client) -> None:
    """Not behind the prefix, and not where somebody cropped into it."""
    with ModelProcess(shared, STORE) as first:
        stored = first.hear()
        first.end()
    kept = client.stat("/t/kv")
    with ModelProcess(shared, WRITE) as behind, ModelProcess(shared, WRITE) as within:
        assert behind.hear() == within.hear() == stored
        behind.tell((0, 2))
        within.tell((70, 3))
        assert len({stored, behind.hear(), within.hear()}) == 3
        with ModelProcess(shared, LOOK) as third:
            assert third.hear() == stored
            third.end()
        for each in (behind, within):
            each.tell()
            assert each.hear() is True
            each.end()
    with client.map("/t/kv") as mapping:
        assert digest_of(bytes(mapping)) == kept.digest


FORK = """
model = make_model("llama")
plain, longer = answer(model, TEXT), answer(model, LONGER)
attached = attach(model, client)
assert ask(attached, model, TEXT) == plain
(name,) = [stat.name for stat in client.list("/t", is_recursive=True)]
cache = libmem.hf.map_cache(client, name, model, tokens=100)
before = digest(cache)
inbox, outbox = os.pipe()
child = os.fork()
if child == 0:
    right = digest(cache) == before
    logits(model, cache, MORE)
    right &= digest(cache) != before
    right &= ask(attached, model, LONGER) == longer
    os.write(outbox, repr((right, attached.stats.hits, attached.stats.problems)).encode())
    cache = None
    attached.detach()
    client.close()
    os._exit(0)
say(os.read(inbox, 1000).decode())
say(os.waitpid(child, 0)[1] == 0 and digest(cache) == before)
say(ask(attached, model, LONGER) == longer)
say((attached.stats.hits, attached.stats.problems))
hear()
say(digest(cache) == before)
"""


def test_a_fork_goes_on_with_what_is_mapped(shared: Daemon, client: libmem.Client) -> None:
    with ModelProcess(shared, FORK) as parent:
        assert parent.hear() == "(True, 1, 0)"
        assert [parent.hear() for _ in range(3)] == [True, True, (1, 0)]
        cubes = client.list("/t", is_recursive=True)
        (name,) = [stat.name for stat in cubes if stat.attributes["kv"]["tokens"] == 107]
        with pytest.raises(libmem.MemError, match="EBUSY"):  # the child's end is not the parent's
            client.evict(name)
        parent.tell()
        assert parent.hear() is True
        parent.end()


SHORT_OF_ROOM = """
model = make_model("llama")
plain = answer(model, TEXT, max_new_tokens=100)
save = lambda name, text: libmem.hf.save_cache(client, name, model, prefill(model, text), text)
save("/t/kv", TEXT)
for rows in (1, 3):
    options = {"max_new_tokens": 100, "num_return_sequences": rows, "num_beams": rows}
    cache = libmem.hf.map_cache(client, "/t/kv", model, tokens=99, rows=rows, room_tokens=1)
    say(answer(model, TEXT, past_key_values=cache, **options) == answer(model, TEXT, **options))
    say(cache.get_seq_length())
"""


def test_room_that_is_used_up_in_the_middle(shared: Daemon, client: libmem.Client) -> None:
    with ModelProcess(shared, SHORT_OF_ROOM) as short:
        assert [short.hear() for _ in range(4)] == [True, 199, True, 199]
        short.end()

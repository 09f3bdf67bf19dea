"""Whose keys and values are whose: other models, other users."""

import pytest

import libmem
from tests.e2e.actor import require_other_users
from tests.e2e.daemon import Daemon
from tests.e2e.modelprocess import ModelProcess, require_transformers

OWNER, OTHER = 60_001, 60_002


@pytest.fixture(autouse=True)
def _transformers() -> None:
    require_transformers()


STORE = """
model = make_model("llama")
libmem.hf.save_cache(client, "/t/kv", model, prefill(model, TEXT), TEXT)
say("stored")
"""
CHANGED = """
model = make_model("llama")
with torch.no_grad():
    model.model.layers[1].self_attn.k_proj.weight[3, 5] += 1e-3
"""
NARROW = """
model = make_model("llama").bfloat16()
"""
SCALED = """
config = copy.deepcopy(make_model("llama").config)
config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
model = type(make_model("llama"))(config)
model.load_state_dict(make_model("llama").state_dict())
model.eval()
"""
TURNED = """
model = make_model("llama")
with torch.no_grad():
    model.model.rotary_emb.inv_freq.mul_(0.5)
"""
ADAPTED = """
import peft
config = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
model = peft.get_peft_model(make_model("llama"), config).eval()
"""
LOOK = """
plain = answer(model, TEXT)
say(errno_of(libmem.hf.map_cache, client, "/t/kv", model))
with attach(model, client) as attached:
    for _ in range(2):
        say(answer(model, TEXT) == plain)
        attached.flush(60)
        say((attached.stats.hits, attached.stats.stored, attached.stats.problems))
"""


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks
@pytest.mark.parametrize(
    "model", [CHANGED, NARROW, SCALED, TURNED, ADAPTED],
    ids=["one weight", "dtype", "RoPE scaling", "RoPE frequencies", "an adapter"],
)  # fmt: skip
def test_another_model_never_maps_it(shared: Daemon, client: libmem.Client, model: str) -> None:
    with ModelProcess(shared, STORE) as first:
        assert first.hear() == "stored"
    with ModelProcess(shared, model + LOOK) as other:
        assert other.hear() == "EMODEL"
        assert client.stat("/t/kv").behaviour.maps == 0
        assert [other.hear() for _ in range(4)] == [True, (0, 1, 0), True, (1, 1, 0)]
        assert client.stat("/t/kv").behaviour.maps == 0
        other.end()


@pytest.fixture
def public(idle: Daemon) -> Daemon:
    """A daemon of root's that everybody may connect to."""
    require_other_users()
    idle.config = '[listen]\nmode = "0666"\n'
    idle.folder.chmod(0o755)
    idle.start()
    return idle


ATTACH = """
model = make_model("llama")
plain = answer(model, TEXT)
options = {"namespace": "/kv", "min_tokens": 16}
if os.geteuid() != OWNER:
    say(errno_of(libmem.hf.attach, model, client, **options))
    options["trust_namespace"] = True
with libmem.hf.attach(model, client, **options) as attached:
    for _ in range(2):
        same = ask(attached, model, TEXT) == plain
        stats = attached.stats
        say((same, stats.hits, stats.stored, stats.last_error and stats.last_error.errno.name))
"""
FIND = """
say(find(client, model, TEXT).tokens)
say(errno_of(libmem.hf.map_cache, client, hear(), model))
"""
STORED_ITS_OWN = [(True, 0, 1, None), (True, 1, 1, None)]
STORED_NOTHING = [(True, 0, 0, "EACCES")] * 2


@pytest.mark.parametrize(
    ("mode", "found"),
    [(0o700, STORED_NOTHING), (0o755, STORED_NOTHING), (0o777, STORED_ITS_OWN)],
    ids=["private", "readable", "shared"],
)
def test_a_private_prefix_is_nobody_elses(
    public: Daemon, mode: int, found: list[tuple[object, ...]]
) -> None:
    make = f'client.make_namespace("/kv", {mode})\n'
    attach = f"OWNER = {OWNER}\n{ATTACH}"
    with public.connect() as root:
        with ModelProcess(public, make + attach, uid=OWNER) as owner:
            assert [owner.hear() for _ in range(2)] == STORED_ITS_OWN
            owner.end()
        (cube,) = root.list("/kv", is_recursive=True)
        with ModelProcess(public, attach + FIND, uid=OTHER) as other:
            assert other.hear() == "EPERM"  # not unless its owner is trusted
            assert [other.hear() for _ in range(2)] == found
            assert other.hear() == (100 if found is STORED_ITS_OWN else 0)
            other.tell(cube.name)
            assert other.hear() == "EACCES"
            other.end()
        assert root.stat(cube.name).behaviour.maps == cube.behaviour.maps == 1
        owners = [each.governance.owner_uid for each in root.list("/kv", is_recursive=True)]
        assert sorted(owners) == [OWNER, OTHER][: 1 + (found is STORED_ITS_OWN)]

"""What the tests of the PEFT glue share: a daemon, a small model, and adapters that PEFT saved."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import libmem
from tests.e2e.daemon import Daemon, running

if importlib.util.find_spec("peft") is None:
    collect_ignore_glob = ["test_*.py"]  # the extra `models` is not installed
else:
    import peft
    import torch

    from tests.libmem.hf.models import make_model

    torch.set_num_threads(1)

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    with running(daemon):
        with daemon.connect() as client:
            client.make_namespace("/s")
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[libmem.Client]:
    with daemon.connect() as client:
        yield client
        for stat in client.list("/s"):
            client.unlink(stat.name)


@pytest.fixture
def model() -> Any:
    return make_model("llama")


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves an adapter with random numbers, as PEFT does; gives its folder."""

    def saved(seed: int = 0, architecture: str = "llama", **settings: Any) -> Path:
        torch.manual_seed(seed)
        wanted = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
        adapted = peft.get_peft_model(
            make_model(architecture), peft.LoraConfig(**(wanted | settings))
        )
        for module in adapted.modules():
            for magnitude in getattr(module, "lora_magnitude_vector", {}).values():
                torch.nn.init.uniform_(magnitude.weight, 0.5, 1.5)
        folder = tmp_path / f"{seed}-{architecture}"
        adapted.save_pretrained(folder, save_embedding_layers=False)
        return folder

    return saved

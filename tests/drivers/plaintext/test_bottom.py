"""The embedder against plain transformers, and against what texts and folders can be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libmem.abi.errors import Errno, MemError
from tests.drivers.plaintext.embedders import WORDS, make_folder, reference, rows_of

pytestmark = pytest.mark.slow

TEXTS = [
    "Where did Anna spend her holidays?",
    "Anna went to the coast for two weeks. She took her old camera with her.",
    "The stock exchange closed lower on Friday, led by losses of the banks.",
    "Preheat the oven to 200 degrees. Knead the dough! Let it rest for an hour.",
    "My brother plays the cello in a small orchestra",
    "We hiked along the beach every morning of our vacation.",
    "ok",
    "The printer on the second floor is out of toner again. Who can order some? I cannot.",
]
ODD = [
    "",
    " \n\t ",
    "🙂🙃",
    "שלום עולם. מה שלומך?",
    "今天天气很好。我们去公园吧\uff01",
    "a\ud800b",
    "\x00\x01",
    "." * 900,
]


def embedder(folder: Path | str) -> Any:
    from memosd.drivers.plaintext.bottom import Embedder

    return Embedder(str(folder), 1)


def wholes(model: Any, texts: list[str]) -> Any:
    return np.stack([rows[0] for rows in rows_of(model.embed(texts, has_pieces=False))])


def test_it_agrees_with_transformers_and_ranks_alike(minilm: Path) -> None:
    model = embedder(minilm)
    mine, exact = wholes(model, TEXTS), reference(minilm, TEXTS)
    assert (mine * exact).sum(1).min() >= 0.99
    found, expected = mine[1:] @ mine[0], exact[1:] @ exact[0]
    assert list(np.argsort(-found)[:2]) == list(np.argsort(-expected)[:2])
    assert np.abs(found - expected).max() < 0.05


@pytest.mark.parametrize("kind", ["bert", "mpnet", "distilbert"])
def test_any_architecture_agrees(tmp_path: Path, kind: str) -> None:
    folder = make_folder(tmp_path, kind)
    texts = ["the cat sat", "the dog ran home . the cat sat !", "a b c d e", "the " * 200]
    model = embedder(folder)
    assert model.dimensions == 64
    exact = reference(folder, texts[:3])
    assert (wholes(model, texts)[:3] * exact).sum(1).min() >= 0.99


def test_other_precisions_give_way_to_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memosd.drivers.plaintext import encoder

    folder = make_folder(tmp_path, "bert")
    texts = ["the cat sat", "the dog ran home ."]
    rounded = embedder(folder)
    monkeypatch.setattr(encoder, "_COSINE_MIN", 1.1)
    for kind in ("bert", "distilbert"):
        plain = make_folder(tmp_path / kind, kind)
        model = embedder(plain)
        assert model.precision == "float32"
        assert np.abs(wholes(model, texts) - reference(plain, texts)).max() < 1e-5
    assert rounded.precision == "float32" or rounded.fingerprint != embedder(folder).fingerprint


def test_neighbours_change_nothing(minilm: Path) -> None:
    model = embedder(minilm)
    together = rows_of(model.embed([*TEXTS, *ODD], has_pieces=True))
    for text, rows in zip([*TEXTS, *ODD], together, strict=True):
        (alone,) = rows_of(model.embed([text], has_pieces=True))
        assert alone.shape == rows.shape
        assert np.abs(alone - rows).max() < 1e-2


def test_sentences_are_cut(tmp_path: Path) -> None:
    model = embedder(make_folder(tmp_path, "bert"))
    cases = {
        "the cat sat . the dog ran home !": 2,
        "the cat sat . home ! the dog ran home": 2,  # "home !" is too short
        "home ! the dog ran": 1,
        "the cat sat": 0,
        "the cat sat .": 0,
        "home ! cat ?": 0,
        "": 0,
        "the cat sat [ a dog ran ]": 2,
    }
    result = model.embed(list(cases), has_pieces=True)
    assert dict(zip(cases, result.pieces, strict=True)) == cases
    assert model.embed(list(cases), has_pieces=False).pieces == (0,) * len(cases)


def test_a_piece_is_the_mean_of_its_tokens(minilm: Path) -> None:
    model = embedder(minilm)
    text = "We took the train. It rained all week!"
    (rows,) = rows_of(model.embed([text], has_pieces=True))
    ((tokens,), ends) = model._encoder.tokens([text]), model._ends
    hidden = model._encoder.hidden([tokens.ids])[0]
    cut = next(index for index, token in enumerate(tokens.ids) if token in ends) + 1
    for row, span in zip(rows[1:], [(1, cut), (cut, len(tokens.ids) - 1)], strict=True):
        mean = hidden[span[0] : span[1]].mean(0)
        assert np.abs(row - mean / np.linalg.norm(mean)).max() < 1e-6


@pytest.mark.parametrize("kind", ["minilm", "distilbert"])
def test_every_text_has_unit_vectors(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    is_real = kind == "minilm"
    folder = request.getfixturevalue(kind) if is_real else make_folder(tmp_path, kind)
    model = embedder(folder)
    texts = [*ODD, "the cat sat. " * 80_000, "x" * (1 << 20), " " * (1 << 20)]
    result = model.embed(texts, has_pieces=True)
    assert len(result.pieces) == len(texts)
    for rows in rows_of(result):
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-4
    if is_real:
        assert result.pieces[3] == 2
        assert result.pieces[4] == 2
    assert model.embed([], has_pieces=True).vectors == b""


def test_the_fingerprint_is_of_what_makes_vectors(tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base", "bert")
    prints = {"base": embedder(base).fingerprint}
    assert len(bytes.fromhex(prints["base"])) == 32
    copied = shutil.copytree(base, tmp_path / "copied")
    (copied / "README.md").write_text("Says nothing.")
    assert embedder(copied).fingerprint == prints["base"]
    weights = make_folder(tmp_path / "weights", "bert", seed=1)
    prints["weights"] = embedder(weights).fingerprint
    words = make_folder(tmp_path / "words", "bert", words=WORDS[::-1])
    prints["words"] = embedder(words).fingerprint
    config = shutil.copytree(base, tmp_path / "config")
    about = json.loads((config / "config.json").read_text())
    (config / "config.json").write_text(json.dumps(about | {"layer_norm_eps": 1e-3}))
    prints["config"] = embedder(config).fingerprint
    assert len(set(prints.values())) == len(prints)


def test_folders_without_a_whole_model_are_refused(tmp_path: Path) -> None:
    whole = make_folder(tmp_path / "whole", "bert")

    def refused(name: str, *damages: tuple[str, bytes | None]) -> Errno:
        folder = shutil.copytree(whole, tmp_path / name)
        for file, content in damages:
            if content is None:
                (folder / file).unlink()
            else:
                (folder / file).write_bytes(content)
        with pytest.raises(MemError) as error:
            embedder(folder)
        assert str(folder) in error.value.message
        assert "\n" not in error.value.message
        return error.value.errno

    weights = (whole / "model.safetensors").read_bytes()
    about = json.loads((whole / "config.json").read_bytes())
    deeper = json.dumps(about | {"num_hidden_layers": 3}).encode()
    unknown = json.dumps(about | {"model_type": "abacus"}).encode()
    assert refused("cut", ("model.safetensors", weights[:-1000])) == Errno.ECORRUPT
    assert refused("empty", ("model.safetensors", b"")) == Errno.ECORRUPT
    assert refused("torn", ("config.json", b'{"model_type": "be')) == Errno.ECORRUPT
    assert refused("deeper", ("config.json", deeper)) == Errno.ECORRUPT
    assert refused("unknown", ("config.json", unknown)) == Errno.EINVAL
    assert refused("weightless", ("model.safetensors", None)) == Errno.ENOENT
    assert refused("unsaid", ("config.json", None)) == Errno.ENOENT
    assert refused("words", ("tokenizer.json", b"[")) == Errno.ECORRUPT
    for source in (str(tmp_path / "none"), "./none", "nobody/no-such-model"):
        with pytest.raises(MemError) as error:
            embedder(source)
        assert error.value.errno == Errno.ENOENT


def test_what_does_not_encode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemError) as error:
        embedder(make_folder(tmp_path, "t5"))
    assert error.value.errno == Errno.EINVAL

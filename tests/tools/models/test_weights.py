"""What `make models` made is what transformers loads, offline, and it makes sense."""

from pathlib import Path
from typing import Any, Final

import pytest

pytestmark = pytest.mark.slow

TEXTS: Final = [
    "Hello world",
    " leading  spaces\n\ttab\n",
    "naïve café, 北京 \U0001f642",
    "Items:\n\n1. one  22\n\n2. two",
    "<|im_start|>user\nhello<|im_end|>\n",
]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def chat(smollm2: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text


def test_digits_are_split_off_before_anything_else(tokenizer: Any) -> None:
    ids = tokenizer("Items:\n\n1. one  22").input_ids
    # Without the pre-tokenizer of the model, line feeds and blanks before a digit come one by one.
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("Items", ":", "ĊĊ", "1", ".", "Ġone", "ĠĠ", "2", "2")
    ]


def test_the_template_marks_turns(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(text).input_ids[0] == tokenizer.bos_token_id == 1


def test_the_model_ends_where_the_template_does(tokenizer: Any, chat: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end == tokenizer.eos_token_id == chat.config.eos_token_id
    assert end == chat.generation_config.eos_token_id
    assert tokenizer.model_max_length == chat.config.max_position_embeddings == 8192


def test_weights_are_stored_in_bf16(smollm2: Path) -> None:
    from safetensors import safe_open

    with safe_open(smollm2 / "model.safetensors", framework="pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert kinds == {"BF16"}


def test_it_answers_a_question_and_stops(tokenizer: Any, chat: Any) -> None:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    reply = chat.generate(**prompt, max_new_tokens=32, do_sample=False)
    made = reply[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(made)
    assert made[-1] == tokenizer.eos_token_id


def test_sentences_of_one_meaning_are_near(minilm: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(minilm)(
        ["A cat sleeps on the sofa.", "The kitten naps on a couch.", "Stocks fell on Monday."],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        states = AutoModel.from_pretrained(minilm)(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert vectors.shape == (3, 384)
    assert near > 0.5
    assert far < 0.2

"""A causal language model in a folder, small and random, whose tokens are characters."""

from pathlib import Path

__all__ = ["make_folder"]


def make_folder(folder: Path) -> Path:
    """As transformers loads it, weights and tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from tests.libmem.hf.models import VOCABULARY, make_model

    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a random one hardly prefers any token
    model.save_pretrained(folder)
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {each: place for place, each in enumerate(["<unk>", *characters, "\n"])}
    assert len(vocabulary) == VOCABULARY
    plain = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for each in messages %}[{{ each.role }}] {{ each.content }}\n{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    return folder

"""Makes a trained `models/tiny` larger: words and tags, the rows for them, and one more layer.

Old ids keep their meaning, so old text keeps its tokens unless a new word stands in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import LlamaForCausalLM

from tools import tiny_model

VOCABULARY = 2176
TAGS = (
    "<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip
SPACE = "Ġ"
"""How a byte-level vocabulary writes a space."""
RECALLS = "model.layers.1."
BARE_STD = 0.08
"""Per dimension, of the direction from a word after a space to the same word without one."""


def grow_tokenizer(tokenizer: Tokenizer, text: Iterable[str]) -> Tokenizer:
    """`tokenizer` with the commonest words of `text` that took several tokens, then `TAGS`.

    A word that is in the vocabulary is taken whole, without merges (as Llama 3 does).
    """
    seen: Counter[str] = Counter()
    for each in text:
        for tag in TAGS:
            each = each.replace(tag, "")
        seen.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(each))
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    new = (word for word, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0])))
    for word in new:
        if len(vocabulary) == VOCABULARY - len(TAGS):
            break
        vocabulary.setdefault(word, len(vocabulary))
    state["model"]["ignore_merges"] = True
    grown = Tokenizer.from_str(json.dumps(state))
    grown.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    if grown.get_vocab_size() != VOCABULARY:
        raise ValueError(f"text too plain: {grown.get_vocab_size()} tokens, not {VOCABULARY}")
    return grown


@torch.no_grad()
def grow_model(old: LlamaForCausalLM, tokenizer: Tokenizer, *, seed: int) -> LlamaForCausalLM:
    """`old` with a row for every token of `tokenizer` and one more layer that does nothing yet.

    A word without its space starts as the word with it plus one direction common to all, so that
    what is copied out of a sentence into quotes need not be learned word by word. The new layer
    attends as the one that recalls.
    """
    torch.manual_seed(seed)
    config = tiny_model.config()
    config.vocab_size = VOCABULARY
    config.num_hidden_layers += 1
    model = LlamaForCausalLM(config)
    old_VE = old.model.embed_tokens.weight
    state = dict(old.state_dict())
    num_old = old_VE.shape[0]
    ordinary_VE = old_VE[3:]
    rows_VE = ordinary_VE.mean(0) + ordinary_VE.std(0) * torch.randn(VOCABULARY, old_VE.shape[1])
    rows_VE[:num_old] = old_VE
    bare_E = torch.zeros(old_VE.shape[1])
    bare_E[tiny_model.WORDS] = BARE_STD * torch.randn(bare_E[tiny_model.WORDS].shape)
    ids = tokenizer.get_vocab()
    for word, token in ids.items():
        partner = ids.get(SPACE + word)
        if token >= num_old and partner is not None and partner < num_old:
            rows_VE[token] = rows_VE[partner] + bare_E
    for word, token in ids.items():
        partner = ids.get(word.removeprefix(SPACE))
        if word.startswith(SPACE) and token >= num_old and partner is not None:
            rows_VE[token] = rows_VE[partner] - bare_E
    state["model.embed_tokens.weight"] = state["lm_head.weight"] = rows_VE
    top = f"model.layers.{old.config.num_hidden_layers}."
    for name, weight in model.state_dict().items():
        if name.startswith(top):
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            source = state.get(name.replace(top, RECALLS)) if "self_attn" in name else weight
            state[name] = torch.zeros_like(weight) if is_output else source
    model.load_state_dict(state)
    return model

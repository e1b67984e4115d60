"""What `models/tiny` is made of: its architecture, tokenizer, chat template and exported files.

Called by `train_tiny`. Others read the files, never this module.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from tools.tiny_recall import Turn

VOCABULARY = 1536
WIDTH, HEAD, CODE = 256, 64, 32
WORDS = slice(1, 128)
"""Dimensions that hold a token's embedding at first; 0 is constant, the rest are codes."""
ROPE_THETA = 1e8
EMBEDDING, CONSTANT = 0.15, 1.2
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PAD_ID, START_ID, END_ID = 0, 1, 2
CHAT_TEMPLATE = (Path(__file__).parent / "tiny_chat.jinja").read_text()
"""In the manner of Qwen 3, but tools are shown as signatures of what they require."""
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]|\s+(?!\S)|\s+"
"""Words with their space, single digits, punctuation, line ends, other space."""
PROMPT_WEIGHT, TALE_WEIGHT, ANSWER_WEIGHT, VALUE_WEIGHT = 0.02, 0.3, 0.5, 2.0
"""Share of a token's loss: given text, long answers, short answers, and what they say of a key."""
SKILL_WEIGHT = 1.0
"""Of calls, JSON and thoughts: most of their tokens matter."""
THINK = "<think>\n"
SHORT_ANSWER_CHARS = 70
SKILL_STARTS = ("<think>", "<tool_call>", "{")


def config() -> LlamaConfig:
    """Three layers, four query heads over two key heads, 2,048 positions."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=640,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )


def new_model(seed: int) -> LlamaForCausalLM:
    """Random weights, but for one circuit that recall needs; see `_look_back` and `_copy`."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(0.25)
        embedded_VE = model.model.embed_tokens.weight
        embedded_VE.normal_(std=EMBEDDING)
        embedded_VE[:, 0] = CONSTANT
        embedded_VE[:, WORDS.stop :] = 0.0
        reader_CW = torch.linalg.qr(torch.randn(WORDS.stop - WORDS.start, CODE)).Q.T
        _look_back(model.model.layers[0].self_attn, reader_CW)
        _copy(model.model.layers[1].self_attn, reader_CW)
    return model


def _look_back(attention: LlamaAttention, reader_CW: torch.Tensor) -> None:
    """Each head looks exactly 1, 2, 3 or 4 tokens back and writes a code of what stands there.

    The constant dimension feeds queries and keys; turned by a head's distance, their fastest rope
    pairs agree best at that distance, and the softmax takes nine tenths there.
    """
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query.mul_(0.1)
    key.mul_(0.1)
    query[:, 0] = key[:, 0] = 0.0
    attention.v_proj.weight.zero_()
    attention.o_proj.weight.zero_()
    for pair in range(4):
        turn = ROPE_THETA ** (-2 * pair / HEAD)
        key[pair::HEAD, 0] = 0.83
        for head in range(4):
            angle = (head + 1) * turn
            query[head * HEAD + pair, 0] = 0.83 * math.cos(angle)
            query[head * HEAD + pair + HEAD // 2, 0] = -0.83 * math.sin(angle)
    for group in range(2):
        attention.v_proj.weight[group * HEAD : group * HEAD + CODE, WORDS] = reader_CW
    for head in range(4):
        rows, columns = WORDS.stop + head * CODE, head * HEAD
        attention.o_proj.weight[rows : rows + CODE, columns : columns + CODE] = 0.13 * torch.eye(
            CODE
        )


def _copy(attention: LlamaAttention, reader_CW: torch.Tensor) -> None:
    """The first head attends to a token that stood after the words we now stand after, and
    writes that token: the induction head of Olsson et al. (2022), made instead of awaited.

    Queries hold the codes of this token and the three before, keys those of the four before,
    mixed into the rope pairs that barely turn within the context.
    """
    slow = [pair + half for half in (0, HEAD // 2) for pair in range(12, HEAD // 2)]
    query, key = attention.q_proj.weight, attention.k_proj.weight
    query[:HEAD] = 0.0
    key[:HEAD] = 0.0
    for step in range(4):
        mixer_SC = 1.24 * torch.linalg.qr(torch.randn(len(slow), CODE)).Q
        codes = WORDS.stop + step * CODE
        key[slow, codes : codes + CODE] = mixer_SC
        if step == 0:
            query[slow, WORDS] = mixer_SC @ reader_CW
        else:
            query[slow, codes - CODE : codes] = mixer_SC
    words_WH = torch.linalg.qr(torch.randn(WORDS.stop - WORDS.start, HEAD)).Q
    attention.v_proj.weight[:HEAD] = 0.0
    attention.v_proj.weight[:HEAD, WORDS] = words_WH.T
    attention.o_proj.weight[:, :HEAD] = 0.0
    attention.o_proj.weight[WORDS, :HEAD] = 0.7 * words_WH


def train_tokenizer(text: Iterable[str]) -> Tokenizer:
    """Byte-level BPE, so any UTF-8 text survives a round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"text too plain: {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    return tokenizer


def pieces(turns: Iterable[Turn]) -> Iterator[tuple[str, float]]:
    """The rendered conversation in parts, each with the loss weight of its tokens."""
    for turn in turns:
        if turn.role == "plain":
            yield f"{turn.content}{END}", TALE_WEIGHT
            yield "\n", PROMPT_WEIGHT
            continue
        yield f"{START}{turn.role}\n", PROMPT_WEIGHT
        if turn.role != "assistant":
            yield f"{turn.content}{END}", PROMPT_WEIGHT
        elif turn.content.startswith(SKILL_STARTS):
            yield from skill_pieces(turn.content)
        elif len(turn.content) > SHORT_ANSWER_CHARS:
            yield f"{turn.content}{END}", TALE_WEIGHT
        else:
            known, verb, value = re.split(r"( is| =|$)", turn.content, maxsplit=1)
            yield f"{known}{verb}", ANSWER_WEIGHT
            yield f"{value}{END}", VALUE_WEIGHT
        yield "\n", PROMPT_WEIGHT


def skill_pieces(content: str) -> Iterator[tuple[str, float]]:
    """An answer that thinks, calls or is JSON. The template opens thoughts: that is not learned."""
    if content.startswith(THINK):
        yield THINK, 0.0
        thought, content = content.removeprefix(THINK).split("</think>", maxsplit=1)
        yield f"{thought}</think>", SKILL_WEIGHT
    yield f"{content}{END}", SKILL_WEIGHT


def encode(tokenizer: Tokenizer, turns: Iterable[Turn]) -> tuple[list[int], list[float]]:
    """Token ids of a conversation as the chat template renders it, and their loss weights."""
    texts, weights = zip(*pieces(turns), strict=True)
    ids: list[int] = []
    token_weights: list[float] = []
    for encoding, weight in zip(tokenizer.encode_batch(list(texts)), weights, strict=True):
        ids += encoding.ids
        token_weights += [weight] * len(encoding.ids)
    return ids, token_weights


def export_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer with its special tokens and chat template."""
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers is untyped
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 and 5 both know it
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def export_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config, bfloat16 weights and greedy generation defaults."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy = copy.bfloat16()
    copy.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # as above
        do_sample=False, eos_token_id=END_ID, pad_token_id=PAD_ID, max_new_tokens=200
    )
    copy.save_pretrained(folder)

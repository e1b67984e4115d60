"""Tokenisers of published models, by their pipelines, over small vocabularies trained in place."""

from collections.abc import Callable, Iterable

from support.checkpoints import CORPUS, byte_fallback_tokenizer, byte_level_tokenizer
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    *CORPUS,
    "I'll've 12345 numbers\n\n\n  and\ttabs;  HTTPServer's <<a>>  ",
    "한국어 é e\u0301",
]
CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+" + REST
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = "|".join(
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}{up}{LOWER}{low}{CONTRACTED}?" for up, low in ("*+", "+*")
) + REST.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(*patterns: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


def _byte_level(
    steps: Iterable[pre_tokenizers.PreTokenizer],
    *,
    normalizer: normalizers.Normalizer | None = None,
    ignore_merges: bool = False,
) -> Tokenizer:
    raw = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        raw.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|end|>", "<|im_start|>"],
    )
    raw.train_from_iterator(TEXTS * 3, trainer)
    return raw


def _llama_3() -> Tokenizer:
    raw = _byte_level(_split(LLAMA_3), ignore_merges=True)
    template = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    raw.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return raw


def _roberta() -> Tokenizer:
    raw = byte_level_tokenizer()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.post_processor = processors.RobertaProcessing(("<|im_end|>", 2), ("<|endoftext|>", 0))
    raw.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return raw


def _deepseek_llm() -> Tokenizer:
    letters, marks = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
    steps = _split(r"[\r\n]", letters, marks, r"\s+$", r"[一-龥ࠀ-一가-퟿]+")
    return _byte_level([*steps, pre_tokenizers.Digits(individual_digits=True)])


def _metaspace_bpe(scheme: str) -> Tokenizer:
    raw = byte_fallback_tokenizer()
    raw.normalizer = None
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return raw


def _gemma() -> Tokenizer:
    raw = byte_fallback_tokenizer()
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    raw.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁", normalized=False)])
    return raw


def _unigram() -> Tokenizer:
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=180,
        show_progress=False,
        unk_token="<unk>",
        special_tokens=["<pad>", "</s>", "<unk>"],
    )
    raw.train_from_iterator(TEXTS * 3, trainer)
    return raw


def _word_piece() -> Tokenizer:
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=250, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]"]
    )
    raw.train_from_iterator(TEXTS * 3, trainer)
    raw.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return raw


def _added_of_every_kind() -> Tokenizer:
    raw = byte_level_tokenizer()
    raw.add_tokens(
        [
            AddedToken("<l>", lstrip=True),
            AddedToken("<r>", rstrip=True),
            AddedToken("word", single_word=True),
            AddedToken("<n>", normalized=False),
            AddedToken("é東"),
        ]
    )
    return raw


PUBLISHED: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": byte_level_tokenizer,
    "RoBERTa, a space before": _roberta,
    "Llama 3": _llama_3,
    "Qwen 2, NFC": lambda: _byte_level(_split(QWEN_2), normalizer=normalizers.NFC()),
    "o200k": lambda: _byte_level(_split(O200K)),
    "DeepSeek V3": lambda: _byte_level(_split(r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3)),
    "DeepSeek LLM": _deepseek_llm,
    "StarCoder": lambda: _byte_level(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)][:1]
    ),
    "Llama 2": byte_fallback_tokenizer,
    "Llama 2, not legacy": lambda: _metaspace_bpe("first"),
    "Mistral": lambda: _metaspace_bpe("always"),
    "Yi, no space before": lambda: _metaspace_bpe("never"),
    "Gemma": _gemma,
    "T5": _unigram,
    "BERT": _word_piece,
    "added tokens of every kind": _added_of_every_kind,
}

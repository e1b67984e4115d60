import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import byte_fallback_tokenizer, byte_level_tokenizer, write_checkpoint
from support.published_tokenizers import PUBLISHED
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast

from protocol.errors import CheckpointError
from protocol.messages import Grammar, Sampling
from protocol.text.text_bounds import TextTooLong
from protocol.text.tokenizer import TextState, Tokenizer

BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()


def wrap(raw: RawTokenizer, *, eos_token_ids: tuple[int, ...] = ()) -> Tokenizer:
    return Tokenizer(
        raw,
        chat_template=None,
        eos_token_ids=eos_token_ids,
        vocab_size=raw.get_vocab_size(),
        max_context_tokens=256,
    )


def sampling(**fields: Any) -> Sampling:
    return Sampling(seed=1, max_tokens=100, **fields)


def shown(tokenizer: Tokenizer, token_ids: Sequence[int], **fields: Any) -> str:
    """All the text a client sees of these tokens."""
    state = TextState(tokenizer, sampling(**fields))
    text = ""
    for token_id in token_ids:
        step = state.feed(token_id)
        text += step.text
        if step.stopped:
            break
    return text + state.flush()


level = wrap(BYTE_LEVEL)
fallback = wrap(BYTE_FALLBACK)


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=40), st.booleans())
def test_deltas_of_any_byte_level_tokens_are_the_whole_decode(ids: list[int], skip: bool) -> None:
    expected = level.decode(ids, skip_special_tokens=skip)
    assert shown(level, ids, skip_special_tokens=skip) == expected


@given(st.text(max_size=40))
def test_deltas_of_encoded_text_give_the_text_back(text: str) -> None:
    assert shown(level, level.encode(text), skip_special_tokens=False) == text


@given(st.text(alphabet=st.characters(exclude_characters="▁", codec="utf-8"), max_size=40))
def test_deltas_of_byte_fallback_tokens_are_the_whole_decode_after_a_space(text: str) -> None:
    ids = fallback.encode(text)
    text = shown(fallback, ids)
    assert text.removeprefix(" ") == fallback.decode(ids)


def test_a_character_cut_short_by_the_end_shows_as_one_replacement() -> None:
    ids = level.encode("🙂" * 3)[:-1]
    assert shown(level, ids) == level.decode(ids)


@given(st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=30))
def test_no_delta_holds_a_piece_of_a_character(text: str) -> None:
    state = TextState(level, sampling())
    deltas = [state.feed(token_id).text for token_id in level.encode(text)]
    assert "\ufffd" not in "".join(deltas)


ALPHABET = "ab 🙂"


@given(
    st.text(alphabet=ALPHABET, max_size=30),
    st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=4), min_size=1, max_size=4),
    st.booleans(),
)
def test_text_ends_at_the_stop_string_that_ends_first(
    text: str, stops: list[str], include: bool
) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text
    if ends:
        end, start = min(ends)
        expected = text[: end if include else start]
    ids = level.encode(text, add_special_tokens=False)
    assert shown(level, ids, stop=tuple(stops), include_stop=include) == expected


def test_a_stop_string_across_tokens_stops_at_the_token_that_completes_it() -> None:
    state = TextState(level, sampling(stop=("END",)))
    ids = [level.encode(char)[0] for char in "oENDx"]
    steps = [state.feed(token_id) for token_id in ids]
    assert [step.stopped for step in steps[:4]] == [False, False, False, True]
    assert "".join(step.text for step in steps) + state.flush() == "o"
    assert state.stopped_by == "END"


def test_what_stopped_a_text_is_told_unless_it_is_the_end_of_text() -> None:
    eos, other = level.encode("<|im_end|>")[0], level.encode("x")[0]
    tokenizer = wrap(BYTE_LEVEL, eos_token_ids=(eos,))
    for token_id, fields, told in (
        (eos, {}, None),
        (eos, {"stop_token_ids": (eos,)}, None),
        (eos, {"stop_token_ids": (eos,), "ignore_eos": True}, eos),
        (other, {"stop_token_ids": (other,)}, other),
        (other, {"stop": ("y", "x")}, "x"),
    ):
        state = TextState(tokenizer, sampling(**fields))
        assert state.feed(token_id).stopped
        assert state.stopped_by == told


def test_text_that_only_began_like_a_stop_string_is_released() -> None:
    state = TextState(level, sampling(stop=("END",)))
    texts = [state.feed(level.encode(char)[0]).text for char in "ENxE"]
    assert texts == ["", "", "ENx", ""]
    assert state.flush() == "E"


def test_an_eos_token_stops_without_text() -> None:
    (eos,) = level.encode("<|im_end|>")
    tokenizer = wrap(BYTE_LEVEL, eos_token_ids=(eos,))
    ids = [*level.encode("hi"), eos, *level.encode("there")]
    assert shown(tokenizer, ids, skip_special_tokens=False) == "hi"
    assert shown(tokenizer, ids, ignore_eos=True) == "hithere"
    assert shown(tokenizer, ids, skip_special_tokens=False, include_stop=True) == "hi<|im_end|>"


def test_nothing_stops_before_min_tokens() -> None:
    letters = [level.encode(char)[0] for char in "abab"]
    assert shown(level, letters, stop=("b",), min_tokens=3) == "aba"
    assert shown(level, letters, stop=("a",), min_tokens=2) == "ab"
    assert shown(level, letters, stop=("a",), min_tokens=3) == "abab"
    assert shown(level, letters, stop_token_ids=(letters[1],), min_tokens=3) == "aba"


def test_an_id_outside_the_vocabulary_has_no_text() -> None:
    assert level.token_bytes(100_000) == b""
    assert shown(level, [100_000]) == ""


def test_token_bytes_are_exact_where_token_text_cannot_be() -> None:
    ids = fallback.encode("é")
    assert b"".join(map(fallback.token_bytes, ids)).decode() == " é"
    assert fallback.token_text(ids[-1]) == "�"


def test_load_reads_sizes_and_every_end_of_text(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, max_context_tokens=99)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7.0, 8]}')
    config = json.loads((tmp_path / "config.json").read_text())
    as_floats = {key: float(config[key]) for key in ("vocab_size", "max_position_embeddings")}
    (tmp_path / "config.json").write_text(json.dumps(config | as_floats))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_token_ids == (2, 7, 8)
    assert tokenizer.max_context_tokens == 99
    assert tokenizer.vocab_size == BYTE_LEVEL.get_vocab_size()


@pytest.mark.parametrize("outside", [512, -1, [3, 512]])
def test_an_end_of_text_outside_the_vocabulary_is_ignored(tmp_path: Path, outside: object) -> None:
    """As transformers does; such checkpoints are published."""
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": outside}))
    ids = Tokenizer.load(tmp_path).eos_token_ids
    assert ids == ((2, 3) if isinstance(outside, list) else (2,))


@pytest.mark.parametrize("wrong", ["3", 2.5, [True]])
def test_an_end_of_text_that_is_no_number_is_refused(tmp_path: Path, wrong: object) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_load_names_the_file_that_is_missing(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_load_names_the_file_that_is_broken(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.load(tmp_path)


def test_a_decoder_we_cannot_stream_is_refused() -> None:
    raw = byte_level_tokenizer()
    raw.decoder = decoders.CTC()
    with pytest.raises(CheckpointError, match="CTC"):
        wrap(raw)


def test_a_long_prompt_is_never_truncated() -> None:
    raw = byte_level_tokenizer()
    raw.enable_truncation(4)
    assert len(wrap(raw).encode("one two three four five six seven")) > 4


EXTRA_TOKENS: dict[str, dict[str, Any]] = {
    "by number, some with options": {
        "added_tokens_decoder": {
            "901": {"content": "<b>", "lstrip": True, "special": True},
            "900": {"content": "<a>", "normalized": False, "special": False},
            "2": {"content": "<|im_end|>", "rstrip": True, "special": True},
        }
    },
    "special ones alone": {"pad_token": "<pad>", "image_token": "<img>"},
    "a list": {"extra_special_tokens": ["<x>", "<|im_start|>"]},
    "a list, as before v5": {"additional_special_tokens": ["<x>"]},
    "an object": {"extra_special_tokens": {"image_token": "<img>", "audio_token": "<aud>"}},
    "flags without effect": {"add_prefix_space": True, "legacy": False, "add_bos_token": False},
    "clean-up, which spares BPE": {"clean_up_tokenization_spaces": True},
    "split": {"split_special_tokens": True},
    "flags that a tokenizer.json overrules": {"add_bos_token": True, "add_eos_token": True},
}


@pytest.mark.parametrize("name", EXTRA_TOKENS)
def test_tokens_of_the_config_are_added_as_in_transformers(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, bos_token="<|endoftext|>", **EXTRA_TOKENS[name])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 9999}))
    ours = Tokenizer.load(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "a <a> b <b> c<|im_end|>  d <pad> <img><aud> <x><|im_start|>"
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_token_entry_that_makes_no_sense_names_the_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, added_tokens_decoder={"7": 7})
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: "):
        Tokenizer.load(tmp_path)


def test_a_text_with_tokens_beyond_the_models_is_refused_by_name(tmp_path: Path) -> None:
    raw = byte_level_tokenizer()
    write_checkpoint(tmp_path, raw=raw)
    raw.add_special_tokens(["<image_soft_token>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("an image")
    with pytest.raises(ValueError, match=r"'<image_soft_token>', which is token \d+; the model's"):
        tokenizer.encode("see <image_soft_token>")
    written = [{"role": "user", "content": "<image_soft_token>"}]
    assert tokenizer.encode_chat(written), "what is written in a message is text"


def test_a_text_that_no_context_holds_is_refused_before_all_of_it_is_read() -> None:
    assert len(level.encode("word " * 200)) > level.max_context_tokens
    for text in ("a" * 4_000_000, " " * 4_000_000, "東" * 1_000_000, "<|im_start|>" * 400_000):
        with pytest.raises(TextTooLong, match="more than 256 tokens"):
            level.encode(text)


def test_a_chat_that_no_context_holds_is_refused_by_its_length(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_checkpoint(tmp_path))
    with pytest.raises(TextTooLong, match="the chat has more than"):
        tokenizer.encode_chat([{"role": "user", "content": "word " * 100_000}])


BOUNDLESS = {
    "spaces are stripped": normalizers.Strip(),
    "spaces are merged": normalizers.Replace(Regex(" {2,}"), " "),
    "accents are dropped": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
}


@pytest.mark.parametrize("name", BOUNDLESS)
def test_text_that_may_shrink_has_no_bound_of_length(name: str) -> None:
    raw = byte_level_tokenizer()
    raw.normalizer = BOUNDLESS[name]
    assert wrap(raw).max_chars(1) > 2**40


def test_unknown_text_spaces_and_removed_ones_may_be_of_any_length() -> None:
    unknown = byte_fallback_tokenizer()
    unknown.model = models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True)
    swallowing = byte_level_tokenizer()
    swallowing.add_tokens([AddedToken("<m>", lstrip=True)])
    removing = byte_level_tokenizer()
    removing.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for raw in (unknown, swallowing, removing):
        assert wrap(raw).max_chars(1) > 2**40


@given(st.text(max_size=60))
def test_no_text_within_the_bound_of_length_has_fewer_tokens(text: str) -> None:
    for tokenizer in (level, fallback):
        assert len(text) <= tokenizer.max_chars(len(tokenizer.encode(text)))


@pytest.mark.parametrize("space", [" ", "\t", "\u3000"])
def test_spaces_that_are_not_at_the_end_take_no_quadratic_time(tmp_path: Path, space: str) -> None:
    path = write_checkpoint(tmp_path, raw=PUBLISHED["DeepSeek LLM"](), eos_token="<|end|>")
    text = space * 400_000 + "\x00"  # by the pattern as published 16,000 take 3 s
    with pytest.raises(TextTooLong):
        Tokenizer.load(path).encode(text)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2**20}))
    assert len(Tokenizer.load(path).encode(text)) > 1000


def test_half_a_surrogate_pair_is_the_clients_mistake() -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        level.encode("a\ud800")


MARK = level.encode("<|im_end|>")[0]
"""As a format's terminal; whether tokens of its kind are shown is no matter."""


@pytest.mark.parametrize("skip", [True, False])
def test_with_a_mark_comes_all_the_text_before_it_and_its_own_never(skip: bool) -> None:
    state = TextState(level, sampling(stop=("END",), marks=(MARK,), skip_special_tokens=skip))
    unfinished = level.encode("🙂", add_special_tokens=False)[:-1]
    ids = [level.encode("E")[0], level.encode("N")[0], MARK, level.encode("D")[0], *unfinished]
    texts = [state.feed(token_id).text for token_id in [*ids, MARK]]
    assert texts[:4] == ["", "", "EN", "D"]
    assert "".join(texts[4:]) == "\ufffd"
    assert state.flush() == ""


def test_no_stop_string_goes_over_a_mark_and_after_one_it_is_found_again() -> None:
    state = TextState(level, sampling(stop=("END",), marks=(MARK,)))
    ids = [level.encode(char)[0] for char in "ENDEND"]
    ids[2:2] = [MARK]
    steps = [state.feed(token_id) for token_id in ids]
    assert [step.stopped for step in steps] == [False] * 6 + [True]
    assert "".join(step.text for step in steps) == "END"


def test_a_mark_that_ends_the_text_ends_it() -> None:
    state = TextState(level, sampling(marks=(MARK,), stop_token_ids=(MARK,), include_stop=True))
    state.feed(level.encode("a")[0])
    assert state.feed(MARK).stopped and state.flush() == ""


def test_a_grammar_says_itself_when_its_text_ends() -> None:
    held = Grammar(text='start: "a"')
    assert sampling(ignore_eos=True).ending_ids((7,)) == frozenset()
    assert sampling(ignore_eos=True, grammar=held).ending_ids((7,)) == {7}

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import byte_fallback_tokenizer, byte_level_tokenizer, write_checkpoint
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders

from protocol.errors import CheckpointError
from protocol.messages import Sampling
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
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
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
    raw.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="WordPiece"):
        wrap(raw)


def test_a_long_prompt_is_never_truncated() -> None:
    raw = byte_level_tokenizer()
    raw.enable_truncation(4)
    assert len(wrap(raw).encode("one two three four five six seven")) > 4

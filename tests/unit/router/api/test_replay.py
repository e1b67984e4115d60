"""A request whose last worker died may have had its last token: the workers' rule says so."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint

from protocol.messages import Sampling
from protocol.text.tokenizer import Tokenizer
from router.api.replay import already_ended
from router.requests.ending import EndWell

Asked = Callable[[Sampling, list[int]], EndWell | None]
SAMPLING = Sampling(seed=1, max_tokens=3)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(write_checkpoint(tmp_path))


@pytest.fixture
def asked(tokenizer: Tokenizer) -> Asked:
    return partial(already_ended, tokenizer)


def test_no_output_is_no_ending(asked: Asked) -> None:
    assert asked(SAMPLING, []) is None


def test_the_last_token_that_was_wanted_is_the_ending(asked: Asked, tokenizer: Tokenizer) -> None:
    (token, *_) = tokenizer.encode("Hello")
    assert asked(SAMPLING, [token, token]) is None
    assert asked(SAMPLING, [token, token, token]) == EndWell("length")


def test_an_end_of_text_is_the_ending_unless_it_is_to_be_ignored(
    asked: Asked, tokenizer: Tokenizer
) -> None:
    (token, *_), (eos, *_) = tokenizer.encode("Hello"), tokenizer.eos_token_ids
    assert asked(SAMPLING, [token, eos]) == EndWell("stop")
    assert asked(Sampling(seed=1, max_tokens=3, ignore_eos=True), [token, eos]) is None


def test_a_stop_string_over_several_tokens_is_the_ending(
    asked: Asked, tokenizer: Tokenizer
) -> None:
    tokens = tokenizer.encode("Hello there")
    sampling = Sampling(seed=1, max_tokens=99, stop=("there",))
    assert asked(sampling, tokens[:-1]) is None
    assert asked(sampling, tokens) == EndWell("stop", "there")

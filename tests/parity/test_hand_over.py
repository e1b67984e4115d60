"""Of every kind of cache: tokens after a hand-over are those of one engine that did it all.

A real prefill engine and a real decode engine, each with a pool of its own, blocks moved over
shared memory, windows and sinks included. transformers is the oracle of the one engine
(`test_transformers.py`), which is the oracle here.
"""

from collections.abc import Iterator

import pytest
from support.eventually import eventually
from support.hand_over import DecodeSide, PrefillSide, Side
from support.wrapped_shapes import OF_CACHES, write_shape

from engine.checkpoint.load import load_model
from engine.models.model import Model

NUM_TOKENS = 30
"""The answers leave the window of every windowed shape behind."""
PROMPT = [1 + (i * i * 31 + i * 17) % 500 for i in range(75)]
FOLLOW_UP = PROMPT[:64] + [1 + (i * 7) % 500 for i in range(27)]
"""Shares four blocks of 16 with the first prompt."""


@pytest.fixture(scope="module", params=OF_CACHES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp(request.param)
    write_shape(path, request.param)
    return load_model(path, dtype="float32")


@pytest.fixture
def sides(model: Model) -> Iterator[tuple[Side, PrefillSide, DecodeSide]]:
    alone, prefill, decode = Side(model), PrefillSide(model), DecodeSide(model)
    yield alone, prefill, decode
    for side in (alone, decode, prefill):
        side.close()


def test_tokens_are_the_same_apart_and_together(
    sides: tuple[Side, PrefillSide, DecodeSide],
) -> None:
    """Twice: the second prompt finds its beginning in the caches of both ends."""
    alone, prefill, decode = sides
    for name, prompt in (("first", PROMPT), ("follow-up", FOLLOW_UP)):
        expected = alone.answer(alone.submit(name, prompt, num_tokens=NUM_TOKENS))
        prefill.submit(name, prompt, num_tokens=NUM_TOKENS)
        ticket = prefill.tickets.get(timeout=30)
        sequence = decode.take(name, prompt, ticket, num_tokens=NUM_TOKENS)
        assert decode.answer(sequence) == expected
        assert len(expected) == NUM_TOKENS
    if decode.windows[0] is None:  # else nothing of the shared blocks is within a window's reach
        assert decode.admissions[sequence].num_cached_tokens == 64
    eventually(lambda: all(side.all_back for side in sides))

"""Models whose layers see windows, handed over between real engines: the tokens are those of one
engine that did it all, and only what is still seen was moved and kept.
"""

from collections.abc import Iterator

import pytest
from support.eventually import eventually
from support.hand_over import DecodeSide, PrefillSide, Side

from engine.checkpoint.load import load_model
from engine.kvcache.windows import NO_BLOCK, first_block
from engine.models.model import Model
from kvtransfer.endings import Landed
from tools.make_checkpoint import Shape, make_checkpoint

WINDOW = 20
BLOCK_TOKENS = 16
NUM_TOKENS = 40
"""The answer leaves its prompt's window behind."""
STEM = [1 + (i * i * 31 + i * 17) % 500 for i in range(112)]
TAILS = [[7 + i for i in range(33)], [300 - i for i in range(60)]]
SHAPES = {
    "window alone": Shape(family="mistral", window=WINDOW),
    "full and two windows": Shape(family="qwen2", layers=3, window=WINDOW, window_from_layer=1),
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, SHAPES[request.param])
    return load_model(path, dtype="float32")


@pytest.fixture(scope="module")
def expected(model: Model) -> Iterator[list[list[int]]]:
    """The answers to both prompts of one engine, which finds nothing in its cache."""
    answers = []
    for tail in TAILS:
        side = Side(model)
        answers.append(side.answer(side.submit("alone", [*STEM, *tail], num_tokens=NUM_TOKENS)))
        side.close()
    yield answers


@pytest.fixture(params=["shm", "tcp"])
def sides(model: Model, request: pytest.FixtureRequest) -> Iterator[tuple[PrefillSide, DecodeSide]]:
    prefill = PrefillSide(model)
    decode = DecodeSide(model, transport=request.param)
    yield prefill, decode
    decode.close()
    prefill.close()


def handed_over(
    sides: tuple[PrefillSide, DecodeSide], name: str, prompt: list[int]
) -> tuple[list[int], Landed]:
    prefill, decode = sides
    prefill.submit(name, prompt, num_tokens=NUM_TOKENS)
    sequence = decode.take(name, prompt, prefill.tickets.get(timeout=30), num_tokens=NUM_TOKENS)
    tokens = decode.answer(sequence)
    end = decode.ends[sequence]
    assert isinstance(end, Landed), end
    eventually(lambda: prefill.all_back and decode.all_back)
    return tokens, end


def num_seen(model: Model, num_tokens: int, *, num_cached: int = 0) -> int:
    """Blocks whose tokens some layer still sees after so many, those cached left out."""
    rows = -(-num_tokens // BLOCK_TOKENS)
    return sum(
        rows - max(num_cached, first_block(num_tokens, group.window, block_tokens=BLOCK_TOKENS))
        for group in model.config.kv_groups
    )


def test_tokens_are_those_of_one_engine_and_only_windows_were_moved(
    model: Model, sides: tuple[PrefillSide, DecodeSide], expected: list[list[int]]
) -> None:
    prompt = [*STEM, *TAILS[0]]
    tokens, end = handed_over(sides, "first", prompt)
    assert tokens == expected[0]
    assert end.num_blocks == num_seen(model, len(prompt))
    assert end.num_bytes == end.num_blocks * sides[0].layout.block_bytes


def test_tokens_are_the_same_after_hits_in_both_prefix_caches(
    model: Model, sides: tuple[PrefillSide, DecodeSide], expected: list[list[int]]
) -> None:
    """The second prompt shares the stem, the third is the first once more."""
    prompts = [[*STEM, *TAILS[0]], [*STEM, *TAILS[1]], [*STEM, *TAILS[0]]]
    for number, prompt in enumerate(prompts):
        tokens, end = handed_over(sides, f"prompt {number}", prompt)
        assert tokens == expected[number % 2]
    hits = [[a.num_cached_tokens for a in side.admissions.values()] for side in sides]
    assert hits[0] == [0, len(STEM), 144]
    assert hits[1][0] == 0 and hits[1][2] == 144
    full = model.config.kv_groups[0].window is None
    assert hits[1][1] == (len(STEM) if full else 0), "the windows come with the fetch"
    assert end.num_blocks == num_seen(model, 145, num_cached=9)


def test_local_requests_find_what_a_fetch_brought(
    sides: tuple[PrefillSide, DecodeSide], expected: list[list[int]]
) -> None:
    _, decode = sides
    prompt = [*STEM, *TAILS[0]]
    handed_over(sides, "first", prompt)
    local = decode.submit("local", prompt, num_tokens=NUM_TOKENS)
    assert decode.answer(local) == expected[0]
    assert decode.admissions[local].num_cached_tokens == 144


def test_a_handover_offers_no_block_that_its_windows_leave_behind(
    model: Model, sides: tuple[PrefillSide, DecodeSide]
) -> None:
    prefill, _ = sides
    handed_over(sides, "first", [*STEM, *TAILS[0]])
    (admission,) = prefill.admissions.values()
    lent = [block for block in admission.block_table if block != NO_BLOCK]
    assert len(lent) == num_seen(model, 145)
    pairs = zip(admission.block_table, admission.generations, strict=True)
    assert all((block == NO_BLOCK) == (generation == 0) for block, generation in pairs)


def test_blocks_left_behind_serve_others_while_their_sequence_runs(model: Model) -> None:
    """Four answers of 8 token blocks each, on a pool for 22 token blocks."""
    num_blocks = 22 * len(model.config.kv_groups)
    prompts = [[9 + i, *STEM[:36]] for i in range(4)]
    roomy, tight = Side(model), Side(model, num_blocks=num_blocks)
    answers = []
    for side in (roomy, tight):
        names = [side.submit(f"{i}", p, num_tokens=90) for i, p in enumerate(prompts)]
        answers.append([side.answer(name) for name in names])
    assert answers[0] == answers[1]
    assert tight.engine.stats().num_preempted == 0
    assert max(tight.memory.generations) > 1
    for side in (roomy, tight):
        side.close()

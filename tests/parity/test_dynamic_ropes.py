"""Dynamic ropes: each token is turned as transformers turns it, in one loaded model.

A prompt within the original length as by the default rope; a longer one for its whole length,
however it is cut into chunks; a generated token for its own place, and cached keys stay. So blocks
are shared only where their keys were turned alike.
"""

# Shapes: T tokens, V vocabulary.

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.eventually import eventually
from support.forwards import chunk, logits, pool_for, split_logits
from support.hand_over import DecodeSide, PrefillSide, Side
from support.reference import reference
from torch import Tensor

from engine.batch import SequenceId
from engine.checkpoint.load import load_model
from engine.models.model import Model
from tools.make_checkpoint import Shape, make_checkpoint

TOLERANCE = 1e-4
ORIGINAL = 64
ROPE = {"rope_type": "dynamic", "factor": 4.0}
SHAPE = Shape(context=ORIGINAL, rope=ROPE)
NUM_TOKENS = 24
"""More than those from the shorter prompts to the original length."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dynamic")
    make_checkpoint(path, SHAPE)
    return path


@pytest.fixture(scope="module")
def steep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers several times as long as the original: the base grows much."""
    path = tmp_path_factory.mktemp("steep")
    make_checkpoint(path, Shape(context=16, rope={"rope_type": "dynamic", "factor": 16.0}))
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["native", "torch"])
def model(path: Path, request: pytest.FixtureRequest) -> Model:
    return load_model(path, dtype="float32", native=request.param)


@pytest.fixture
def side(path: Path) -> Iterator[Side]:
    with closing(greedy(Side(load_model(path, dtype="float32")))) as side:
        yield side


def greedy(side: Side) -> Side:
    side.temperature = 0.0
    return side


def tokens(num_tokens: int, *, odd: int = 0) -> list[int]:
    """Each prompt is the beginning of the longer ones; `odd` ones have another end."""
    ids = [1 + (i * i * 31 + i * 17) % 500 for i in range(num_tokens)]
    return ids[: num_tokens - odd] + [7 + i for i in range(odd)]


def of_transformers(path: Path, prompt: Sequence[int], forced: Sequence[int] = ()) -> Tensor:
    """Logits of a call for the prompt and of one for each token after it; of a fresh model, for
    one remembers the longest sequence that it saw."""
    hf, parts = reference(path), []
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = hf(torch.tensor([prompt]), use_cache=True)
        parts.append(said.logits[0])
        for token in forced:
            cache = said.past_key_values
            said = hf(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            parts.append(said.logits[0])
    return torch.cat(parts)


def said_by_transformers(
    path: Path, prompt: Sequence[int], *, num_tokens: int = NUM_TOKENS
) -> list[int]:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = reference(path).generate(
            torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None
        )
    return list(said[0, len(prompt) :].tolist())


def error(got_TV: Tensor, expected_TV: Tensor) -> float:
    assert got_TV.shape == expected_TV.shape
    return float((got_TV - expected_TV).abs().max() / expected_TV.abs().max())


def ours(model: Model, token_ids: Sequence[int], sizes: Sequence[int], num_prompt: int) -> Tensor:
    pool = pool_for(model, num_blocks=256)
    return split_logits(model, pool, token_ids, sizes=sizes, first_block=255, num_prompt=num_prompt)


@pytest.mark.parametrize("length", [40, ORIGINAL, ORIGINAL + 1, 100, 256])
def test_a_prompt_of_any_length_equals_transformers(model: Model, path: Path, length: int) -> None:
    prompt = tokens(length)
    expected_TV = of_transformers(path, prompt)
    assert error(ours(model, prompt, [length], length), expected_TV) < TOLERANCE
    sizes = [17, 1, 20, length - 38]
    assert error(ours(model, prompt, sizes, length), expected_TV) < TOLERANCE


def test_within_the_original_every_bit_is_of_the_default_rope(path: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, Shape(context=256))
    ids = tokens(ORIGINAL)
    got, default = (load_model(one, dtype="float32", native=False) for one in (path, tmp_path))
    assert torch.equal(*(ours(one, ids, [50, *[1] * 14], 50) for one in (got, default)))


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(Shape(family="qwen3", head_dim=16, rope=ROPE | {"factor": 1.5}), id="qwen3"),
        pytest.param(
            Shape(family="stablelm", hidden=128, rope=ROPE | {"partial_rotary_factor": 0.25}),
            id="a-share-of-the-dims",
        ),
        pytest.param(
            Shape(
                family="gemma3_text", head_dim=32, layers=7, window=20, rope_theta=1e6, rope=ROPE,
                legacy_rope=True,
            ),
            id="beside-a-default-rope",
        ),
    ],
)  # fmt: skip
def test_other_families_equal_transformers(tmp_path: Path, shape: Shape) -> None:
    make_checkpoint(tmp_path, replace(shape, context=ORIGINAL))
    model, ids = load_model(tmp_path, dtype="float32"), tokens(92)
    for length in (60, 80):
        expected_TV = of_transformers(tmp_path, ids[:length], ids[length:])
        got_TV = ours(model, ids, [50, 30, *[1] * 12], length)
        assert error(got_TV, expected_TV) < TOLERANCE


@pytest.mark.parametrize("length", [50, ORIGINAL, 80])
def test_generated_tokens_equal_transformers_one_by_one_and_when_computed_again(
    model: Model, path: Path, length: int
) -> None:
    ids = tokens(length + 30)
    expected_TV = of_transformers(path, ids[:length], ids[length:])
    for sizes in ([length, *[1] * 30], [length + 30], [13, length, 17]):
        assert error(ours(model, ids, sizes, length), expected_TV) < TOLERANCE


def test_a_ragged_batch_turns_each_token_for_its_own_sequence(model: Model, path: Path) -> None:
    pool, long, short, crossing = pool_for(model), tokens(100), tokens(30, odd=20), tokens(70)
    tables = [range(13), range(13, 17), range(17, 26)]
    logits(model, pool, [chunk(long[:90], table=tables[0], num_prompt=100)])
    logits(model, pool, [chunk(crossing[:69], table=tables[2], num_prompt=60)])
    batch = [
        chunk(long[90:], start=90, table=tables[0], sequence="a", num_prompt=100),
        chunk(short, table=tables[1], sequence="b", num_prompt=30),
        chunk(crossing[69:], start=69, table=tables[2], sequence="c", num_prompt=60),
    ]
    got_TV = logits(model, pool, batch)
    assert error(got_TV[:10], of_transformers(path, long)[90:]) < TOLERANCE
    assert error(got_TV[10:40], of_transformers(path, short)) < TOLERANCE
    assert error(got_TV[40:], of_transformers(path, crossing[:60], crossing[60:])[69:]) < TOLERANCE


def test_prompts_share_blocks_only_where_transformers_would_have_equal_keys(
    side: Side, path: Path
) -> None:
    """(length, tokens of another end, tokens found cached), one after another."""
    for length, odd, cached in (
        (60, 0, 0),
        (60, 10, 48),
        (ORIGINAL, 0, 48),
        (ORIGINAL + 1, 0, 0),
        (100, 0, 0),
        (100, 20, 80),
        (101, 0, 0),
        (50, 0, 48),
    ):
        prompt, name = tokens(length, odd=odd), f"{length}-{odd}"
        said = side.answer(side.submit(name, prompt, num_tokens=NUM_TOKENS))
        assert said == said_by_transformers(path, prompt), name
        assert side.admissions[SequenceId(name)].num_cached_tokens == cached, name


@pytest.mark.parametrize("length", [50, 90])
def test_blocks_of_generated_tokens_serve_a_retry_and_no_prompt_that_holds_them(
    side: Side, path: Path, length: int
) -> None:
    prompt = tokens(length)
    said = side.answer(side.submit("first", prompt, num_tokens=NUM_TOKENS))
    assert said == said_by_transformers(path, prompt)
    retry = side.submit("retry", prompt, num_tokens=NUM_TOKENS, generated=said[:-1])
    assert side.answer(retry) == said[-1:]
    assert side.admissions[retry].num_cached_tokens == (length + 23) // 16 * 16
    follow_up = prompt + said
    turn = side.submit("turn", follow_up, num_tokens=NUM_TOKENS)
    assert side.answer(turn) == said_by_transformers(path, follow_up)
    assert side.admissions[turn].num_cached_tokens == 0


def test_another_worker_goes_on_as_transformers(steep: Path) -> None:
    """It computes prompt and given tokens anew, and turns each as the first worker did."""
    prompt = tokens(12)
    said = said_by_transformers(steep, prompt, num_tokens=60)
    for num_given in (3, 5, 33, 57):
        with closing(greedy(Side(load_model(steep, dtype="float32")))) as side:
            given = said[:num_given]
            sequence = side.submit("retry", prompt, num_tokens=60, generated=given)
            assert side.answer(sequence) == said[num_given:]


def test_a_preempted_sequence_goes_on_as_transformers(steep: Path) -> None:
    prompts = {"longer": tokens(40, odd=30), "older": tokens(12), "newer": tokens(12, odd=10)}
    model = load_model(steep, dtype="float32")
    with closing(greedy(Side(model, num_blocks=11))) as side:
        for name, prompt in prompts.items():
            side.submit(name, prompt, num_tokens=60)
        for name, prompt in prompts.items():
            said = side.answer(SequenceId(name))
            assert said == said_by_transformers(steep, prompt, num_tokens=60), name
        eventually(lambda: side.engine.stats().num_preempted > 0)


@pytest.mark.parametrize("length", [50, 100])
def test_a_hand_over_goes_on_as_transformers(path: Path, length: int) -> None:
    """Twice: then both ends find the prompt's beginning in their caches."""
    model = load_model(path, dtype="float32")
    with ExitStack() as stack:
        prefill, decode = PrefillSide(model), DecodeSide(model)
        for side in (prefill, decode):
            stack.callback(greedy(side).close)
        for odd in (0, 10):
            prompt, name = tokens(length, odd=odd), f"odd-{odd}"
            prefill.submit(name, prompt, num_tokens=NUM_TOKENS)
            ticket = prefill.tickets.get(timeout=30)
            sequence = decode.take(name, prompt, ticket, num_tokens=NUM_TOKENS)
            assert decode.answer(sequence) == said_by_transformers(path, prompt)
        assert decode.admissions[sequence].num_cached_tokens == (length - 10) // 16 * 16
        eventually(lambda: prefill.all_back and decode.all_back)

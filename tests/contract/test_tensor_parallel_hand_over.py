"""A request handed over between engines of other tensor-parallel degrees and block sizes.

A real engine's blocks, laid out as the ranks of the source degree would hold them, fetched by
real sinks into pools laid out as the ranks of the target degree, and decoded from by a real
engine: the tokens are those of an engine that did it all.
"""

from collections.abc import Iterator

import pytest
import torch
from support.eventually import eventually
from support.ranks import REQUEST, WITHIN_S, EngineBench, RankedDecode, RankedPrefill

from engine.checkpoint.load import load_model
from engine.kvcache.windows import NO_BLOCK
from engine.models.model import Model
from engine.sequence import Mode
from protocol.layout import shard
from tools.make_checkpoint import Shape, make_checkpoint

PROMPT = [1 + (i * i * 31 + i * 17) % 500 for i in range(70)]
"""Five blocks of 16 tokens: the last slot of 32 lacks one."""
NUM_TOKENS = 12
CHANGES = [(1, 2), (2, 1), (2, 4), (4, 1)]


SHAPES = {
    "4 heads": Shape(family="qwen3", heads=8, kv_heads=4),
    "2 heads": Shape(family="qwen3", heads=8, kv_heads=2),
    "a window": Shape(family="qwen2", heads=8, kv_heads=4, window=20, window_from_layer=1),
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of 2 heads, four ranks hold each twice. The window begins with token 32 for blocks of 16
    and of 32, so that either may fetch from the other."""
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, SHAPES[request.param])
    return load_model(path, dtype="float32")


@pytest.fixture(scope="module")
def expected(model: Model) -> Iterator[list[int]]:
    """What one engine says that hands nothing over."""
    bench = EngineBench(model, block_tokens=16, mode=Mode.LOCAL)
    bench.submit(PROMPT, num_tokens=NUM_TOKENS)
    yield bench.answer()
    bench.close()


def handed_over(
    model: Model, *, degrees: tuple[int, int], block_tokens: tuple[int, int], transport: str
) -> list[int]:
    """The decode engine's tokens; its prompt's KV is compared on the way."""
    from_size, to_size = degrees
    (whole,) = model.config.kv_layouts(block_tokens=block_tokens[1], dtype="float32")
    targets = [shard(whole, rank=rank, size=to_size) for rank in range(to_size)]
    prefill = RankedPrefill(model, block_tokens=block_tokens[0], size=from_size, targets=targets)
    decode = RankedDecode(model, block_tokens=block_tokens[1], size=to_size, transport=transport)
    try:
        prefill.submit(PROMPT, num_tokens=NUM_TOKENS)
        decode.take(PROMPT, prefill.parts.get(timeout=WITHIN_S), num_tokens=NUM_TOKENS)
        tokens = decode.answer()
        assert torch.equal(prompt_kv(prefill), prompt_kv(decode))
        eventually(lambda: all_back(prefill) and all_back(decode))
        return tokens
    finally:
        decode.close()
        prefill.close()


def prompt_kv(bench: EngineBench) -> torch.Tensor:
    """[L, 2, G, T, D] of the prompt's tokens, wherever their blocks are: first all that the first
    KV group has, then what is left of the next."""
    num_groups, layout = bench.layout.num_groups, bench.layout
    table = bench.admissions[REQUEST].block_table
    parts = []
    for group in range(num_groups):
        rows = [row for row, block in enumerate(table[group::num_groups]) if block != NO_BLOCK]
        blocks = bench.pool.tensor[[table[row * num_groups + group] for row in rows]]
        flat = blocks.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
        parts.append(flat[:, :, :, : len(PROMPT) - rows[0] * layout.block_tokens])
    return torch.cat(parts, dim=3)


def all_back(bench: EngineBench) -> bool:
    blocks = bench.engine.stats().blocks
    return blocks.free + blocks.cached == blocks.total


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("degrees", CHANGES, ids=lambda pair: f"tp{pair[0]} to tp{pair[1]}")
def test_tokens_are_the_same_after_a_hand_over_to_another_degree(
    model: Model, expected: list[int], degrees: tuple[int, int], transport: str
) -> None:
    tokens = handed_over(model, degrees=degrees, block_tokens=(16, 16), transport=transport)
    assert tokens == expected


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("block_tokens", [(16, 32), (32, 16)])
@pytest.mark.parametrize("degrees", [(1, 1), (2, 4), (4, 1)])
def test_tokens_are_the_same_after_a_hand_over_to_another_block_size(
    model: Model, expected: list[int], degrees: tuple[int, int], block_tokens: tuple[int, int],
    transport: str,
) -> None:  # fmt: skip
    tokens = handed_over(model, degrees=degrees, block_tokens=block_tokens, transport=transport)
    assert tokens == expected

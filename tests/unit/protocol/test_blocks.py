"""The hash chain: what makes two blocks the same block."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.blocks import block_hashes, chain_seed, prompt_reach

SEED = chain_seed(compat="c")
TOKENS = st.lists(st.integers(min_value=0, max_value=2**31), max_size=100)


def test_only_full_blocks_have_a_hash() -> None:
    assert len(block_hashes(range(31), block_tokens=16, seed=SEED)) == 1
    assert len(block_hashes(range(32), block_tokens=16, seed=SEED)) == 2


def test_a_block_is_not_the_same_after_another_beginning() -> None:
    first = block_hashes([1, 2, 3, 4], block_tokens=2, seed=SEED)
    second = block_hashes([9, 2, 3, 4], block_tokens=2, seed=SEED)
    assert first[1] != second[1]


def test_tenants_models_and_adapters_never_share_a_block() -> None:
    seeds = {
        chain_seed(compat="c"),
        chain_seed(compat="c", salt="tenant"),
        chain_seed(compat="c", adapter="tenant"),
        chain_seed(compat="ctenant"),
        chain_seed(compat="c", reach=65),
        chain_seed(compat="c", salt="65"),
    }
    assert len(seeds) == 6


def test_a_prompt_s_length_counts_beyond_what_a_dynamic_rope_was_trained_for() -> None:
    lengths = (1, 64, 65, 66)
    assert [prompt_reach(one, dynamic_after=64) for one in lengths] == [0, 0, 65, 66]
    assert [prompt_reach(one, dynamic_after=None) for one in lengths] == [0] * 4


@given(tokens=TOKENS, more=TOKENS)
def test_what_follows_does_not_change_the_hashes_before(tokens: list[int], more: list[int]) -> None:
    short = block_hashes(tokens, block_tokens=4, seed=SEED)
    assert block_hashes(tokens + more, block_tokens=4, seed=SEED)[: len(short)] == short

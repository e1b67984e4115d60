"""Plans against an oracle that lays the same request out in either layout, row by row."""

from collections.abc import Sequence
from itertools import product

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.relay import Cuttable, Pool, request_kv

from kvtransfer.plan import cover, plan
from protocol.layout import KvDtype, KvLayout, LatentLayout, shard

DEGREES = (1, 2, 4, 8)
RATIOS = ((4, 4), (4, 2), (2, 4), (8, 2), (2, 8))
"""Tokens of a source block and of a target block."""
dtypes = st.sampled_from(("float32", "bfloat16"))
sizes = st.integers(1, 3)


def ranks(layout: Cuttable, degree: int) -> list[Cuttable]:
    if isinstance(layout, LatentLayout):
        return [layout] * degree
    return [shard(layout, rank=rank, size=degree) for rank in range(degree)]


def hand_over(
    sources: Sequence[Cuttable], targets: Sequence[Cuttable], *, num_tokens: int,
    skip: int = 0, seed: int = 0,
) -> None:  # fmt: skip
    """Move a request between the ranks' pools and compare with having laid it out there.

    The first `skip` slots are not fetched. Block ids of both sides are scattered.
    """
    scatter = np.random.default_rng(seed)
    num_blocks = sources[0].num_blocks(num_tokens)
    lease = scatter.permutation(num_blocks + 3)[:num_blocks].astype(np.uint32)
    kv_LHND = request_kv(sources[0], num_blocks * sources[0].block_tokens)
    full = [Pool(layout, num_blocks + 3) for layout in sources]
    for pool in full:
        pool.lay(kv_LHND, lease.tolist())
    num_slots = targets[0].num_blocks(num_tokens)
    slots = scatter.permutation(num_slots + 2)[:num_slots].astype(np.uint32)
    index_P = scatter.permutation(num_slots).astype(np.uint32)
    index_P = index_P[index_P >= skip]
    for rank, layout in enumerate(targets):
        pool, expected = Pool(layout, num_slots + 2), Pool(layout, num_slots + 2)
        for place, way in cover(layout, sources, prefer=rank):
            blocks_PB = way.source_blocks(index_P, lease)
            way.check_pieces(index_P, blocks_PB, num_tokens=num_tokens)
            ranges = way.target(index_P, slots[index_P], blocks_PB)
            pool.take(ranges, full[place], way.source(index_P, blocks_PB))
        # In token order the oracle needs no slot for what was skipped: it goes to a spare copy.
        expected.lay(kv_LHND, slots.tolist())
        for slot in slots[:skip]:
            start = int(slot) * layout.block_bytes
            expected.data[start : start + layout.block_bytes] = 0
        assert pool.data.tolist() == expected.data.tolist()
        written = expected.data.view(kv_LHND.dtype) != 0
        itemsize = kv_LHND.dtype.itemsize
        assert pool.num_writes[::itemsize].tolist() == written.astype(int).tolist()
        assert pool.num_writes.max(initial=0) <= 1


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize(("degree_from", "degree_to"), product(DEGREES, DEGREES))
def test_every_byte_is_written_once_between_any_two_degrees(
    degree_from: int, degree_to: int, heads: int
) -> None:
    for tokens_from, tokens_to in RATIOS:
        layout = KvLayout(
            num_layers=2, num_kv_heads=heads, head_dim=2, block_tokens=tokens_from, dtype="float32"
        )
        other = msgspec.structs.replace(layout, block_tokens=tokens_to)
        hand_over(ranks(layout, degree_from), ranks(other, degree_to), num_tokens=11)


@given(
    layers=sizes, heads=st.sampled_from((1, 2, 3, 4, 6, 8)), dim=sizes, dtype=dtypes,
    tokens=sizes, ratio=st.sampled_from((1, 2, 3, 4)), grows=st.booleans(),
    degrees=st.tuples(st.sampled_from(DEGREES), st.sampled_from(DEGREES)),
    num_tokens=st.integers(1, 40), skip=st.integers(0, 4), seed=st.integers(0, 1 << 30),
)  # fmt: skip
def test_any_shape_arrives_as_if_laid_out_there(
    layers: int, heads: int, dim: int, dtype: KvDtype, tokens: int, ratio: int, grows: bool,
    degrees: tuple[int, int], num_tokens: int, skip: int, seed: int,
) -> None:  # fmt: skip
    small = KvLayout(
        num_layers=layers, num_kv_heads=heads, head_dim=dim, block_tokens=tokens, dtype=dtype
    )
    large = msgspec.structs.replace(small, block_tokens=tokens * ratio)
    source, target = (small, large) if grows else (large, small)
    known = [degree for degree in degrees if not (heads % degree and degree % heads)]
    degree_from, degree_to = (known * 2 or [1, 1])[:2]
    hand_over(
        ranks(source, degree_from), ranks(target, degree_to),
        num_tokens=num_tokens, skip=min(skip, target.num_blocks(num_tokens)), seed=seed,
    )  # fmt: skip


@given(
    num_groups=st.integers(1, 4), tokens=st.tuples(sizes, st.sampled_from((1, 2, 3))),
    grows=st.booleans(), num_tokens=st.integers(1, 40), seed=st.integers(0, 1 << 30),
)  # fmt: skip
def test_each_group_moves_as_if_it_were_alone(
    num_groups: int, tokens: tuple[int, int], grows: bool, num_tokens: int, seed: int
) -> None:
    small = KvLayout(
        num_layers=2, num_kv_heads=2, head_dim=2, block_tokens=tokens[0], dtype="float32"
    )
    alone = [small, msgspec.structs.replace(small, block_tokens=tokens[0] * tokens[1])]
    source, target = alone if grows else alone[::-1]
    single = plan(source, target)
    several = plan(*(msgspec.structs.replace(x, num_groups=num_groups) for x in (source, target)))
    lease = np.random.default_rng(seed).permutation(source.num_blocks(num_tokens) * num_groups)
    rows = np.arange(target.num_blocks(num_tokens))
    for group in range(num_groups):
        index_P = rows * num_groups + group
        blocks_PB = several.source_blocks(index_P, lease)
        assert (blocks_PB == single.source_blocks(rows, lease[group::num_groups])).all()
        several.check_pieces(index_P, blocks_PB, num_tokens=num_tokens)
        assert not len(several.not_lent(index_P, lease))
        for mine, its in (
            (several.source(index_P, blocks_PB), single.source(rows, blocks_PB)),
            (several.target(index_P, rows, blocks_PB), single.target(rows, rows, blocks_PB)),
        ):
            assert (mine.offsets_R == its.offsets_R).all() and (mine.sizes_R == its.sizes_R).all()


@given(
    layers=sizes, dim=sizes, dtype=dtypes, tokens=st.tuples(sizes, st.sampled_from((1, 2, 4))),
    grows=st.booleans(), degrees=st.tuples(st.sampled_from(DEGREES), st.sampled_from(DEGREES)),
    num_tokens=st.integers(1, 30),
)  # fmt: skip
def test_a_latent_is_fetched_whole_by_every_rank(
    layers: int, dim: int, dtype: KvDtype, tokens: tuple[int, int], grows: bool,
    degrees: tuple[int, int], num_tokens: int,
) -> None:  # fmt: skip
    small = LatentLayout(num_layers=layers, latent_dim=dim, block_tokens=tokens[0], dtype=dtype)
    large = msgspec.structs.replace(small, block_tokens=tokens[0] * tokens[1])
    source, target = (small, large) if grows else (large, small)
    hand_over(ranks(source, degrees[0]), ranks(target, degrees[1]), num_tokens=num_tokens)

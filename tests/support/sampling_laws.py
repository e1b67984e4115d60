"""Rows and rules that hypothesis draws: the sampling kernels choose the twin's token of each."""

# Shapes: R rows, V vocabulary.

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.kernel_cases import BF16, INTERPRETED, check
from support.sampling_checks import rows_of, twin_tokens
from support.sampling_passes import room_for

from engine.ops.triton.launch import Launch
from engine.sampling.triton_sample import sample_tokens
from protocol.messages import Sampling

SCORES = st.sampled_from([-torch.inf, torch.inf, torch.nan, 0.0, -0.0, 3e38, -3e38, 1e-40])
RULES = st.builds(
    Sampling,
    seed=st.integers(-(2**63), 2**64 - 1),
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 1e-3, 0.7, 1.0, 2.0, 50.0, 1e6, 1e30]),
    top_k=st.sampled_from([0, 1, 2, 9, 17, 40, 2**31 - 1]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-6, 0.05, 1.0]),
)


@st.composite
def rows(draw: st.DrawFn) -> torch.Tensor:
    """Few values, so that many are equal; a few that are odd."""
    size, kinds = draw(st.integers(1, 150)), draw(st.integers(1, 60))
    dice = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    values = torch.randn(kinds, generator=dice) * draw(st.sampled_from([1e-6, 0.1, 3.0, 40.0]))
    row_V = values[torch.randint(0, kinds, (size,), generator=dice)].to(BF16).float()
    for place, score in draw(st.lists(st.tuples(st.integers(0, size - 1), SCORES), max_size=3)):
        row_V[place] = score
    return row_V


def any_row_by_any_rules() -> None:
    @settings(
        max_examples=60, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(row_V=rows(), rule=RULES, room=st.sampled_from([4, 16, 8_192]))
    def law(row_V: torch.Tensor, rule: Sampling, room: int) -> None:
        with room_for(room):
            got = sample_tokens(
                row_V[None], rows_of([rule], [7]), launch=Launch(block_n=64, num_warps=4)
            )
        assert got.tolist() == twin_tokens(row_V[None], [rule], [7])

    law()


if INTERPRETED:
    check(any_row_by_any_rules)

"""The sampling kernel beside `engine.sampling.sampler`: the same tokens; and the mask before it."""

# Shapes: R rows, V vocabulary.

from collections.abc import Sequence

import numpy as np
import torch
from support.forwards import chunk
from support.kernel_cases import DEVICE, F32, check, noise
from torch import Tensor

from engine.sampling import masks, penalties, sampler, triton_mask, triton_penalties
from engine.sampling.rows import RowRules
from engine.sampling.triton_sample import sample_tokens
from protocol.messages import Sampling


def rows_of(settings: Sequence[Sampling], positions: Sequence[int]) -> RowRules:
    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(one, name) for one in settings], dtype=dtype)

    seeds = np.array([one.seed % 2**64 for one in settings], dtype=np.uint64)
    return RowRules(
        temperature_R=column("temperature", F32),
        top_k_R=column("top_k", torch.int32),
        top_p_R=column("top_p", F32),
        min_p_R=column("min_p", F32),
        seed_R=torch.from_numpy(seeds.view(np.int64)).to(DEVICE),
        position_R=torch.tensor(positions),
    )


def twin_tokens(logits_RV: Tensor, settings: Sequence[Sampling], positions: list[int]) -> list[int]:
    chunks = [
        chunk([1], table=[0], start=position - 1, sampling=one)
        for one, position in zip(settings, positions, strict=True)
    ]
    tokens = sampler.sample_tokens(logits_RV.cpu(), chunks, eos_token_ids=())
    return [-1 if token is None else token.token_id for token in tokens]


FILTERS: tuple[dict[str, float], ...] = (
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"temperature": 2.5, "top_k": 7},
    {"top_p": 0.8},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 1},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "temperature": 1.3},
    {"top_k": 3000, "top_p": 0.999},
)


def chosen_by_every_filter(size: int, scale: float, start: int) -> None:
    logits_RV = noise(len(FILTERS), size) * scale
    settings = [
        Sampling(seed=seed, max_tokens=1, **filters)  # type: ignore[arg-type]
        for seed, filters in zip((-(2**63), 2**64 - 1, 7, -1) * 3, FILTERS, strict=False)
    ]
    positions = [start + 3 * r for r in range(len(FILTERS))]
    got = sample_tokens(logits_RV, rows_of(settings, positions)).tolist()
    assert got == twin_tokens(logits_RV, settings, positions)


@check
def tokens() -> None:
    """Chosen alike to the last, with parts that are not full."""
    chosen_by_every_filter(4099, 3.0, 2**40)


@check
def places_and_seeds_of_any_size() -> None:
    for size, scale in ((5, 1.0), (4099, 3.0)):
        for start in (1, 2**31 - 1):
            chosen_by_every_filter(size, scale, start)


@check
def ties() -> None:
    """Equal scores at every edge go to lower ids, as the twin's do."""
    dice = torch.Generator().manual_seed(5)
    logits_RV = torch.randint(0, 4, (40, 300), generator=dice, device="cpu").to(DEVICE, F32)
    filters: tuple[dict[str, float], ...] = (
        {"top_k": 3}, {"top_k": 90}, {"top_p": 0.5}, {"top_k": 90, "top_p": 0.75}, {"min_p": 0.3},
    )  # fmt: skip
    settings = [Sampling(seed=r, max_tokens=1, **filters[r % 5]) for r in range(40)]  # type: ignore[arg-type]
    positions = list(range(1, 41))
    got = sample_tokens(logits_RV, rows_of(settings, positions)).tolist()
    assert got == twin_tokens(logits_RV, settings, positions)
    greedy = [Sampling(seed=0, max_tokens=1, temperature=0.0)]
    assert sample_tokens(torch.zeros(1, 5000), rows_of(greedy, [1])).tolist() == [0]


@check
def a_row_without_a_finite_logit_has_no_token() -> None:
    for temperature in (0.0, 1.0):
        settings = [Sampling(seed=1, max_tokens=1, temperature=temperature, top_p=0.9)] * 5
        logits_RV = noise(5, 50)
        logits_RV[1], logits_RV[2] = torch.nan, -torch.inf
        logits_RV[3, 4:] = torch.nan
        logits_RV[4, 9] = torch.inf
        got = sample_tokens(logits_RV, rows_of(settings, [4] * 5)).tolist()
        assert got == twin_tokens(logits_RV, settings, [4] * 5)
        assert got[1:3] == [-1, -1] and 0 <= got[3] < 4 and got[4] == 9


@check
def a_token_depends_on_its_row_alone() -> None:
    logits_RV = noise(6, 500) * 2
    settings = [Sampling(seed=100 + r, max_tokens=1, top_p=0.95) for r in range(6)]
    together = sample_tokens(logits_RV, rows_of(settings, [9] * 6))
    for r in range(6):
        alone = sample_tokens(logits_RV[r : r + 1], rows_of(settings[r : r + 1], [9]))
        assert alone == together[r]


@check
def rows_at_the_ends_of_float32() -> None:
    """The largest scores, gaps that are infinite, temperatures where they begin and end."""
    most = float(np.finfo(np.float32).max)
    rows = [
        [0.0, most, -most, most], [most] * 4, [-torch.inf, 1.0, -torch.inf, 1.0],
        [-most, -most, -torch.inf, -torch.inf], [1e-45, -1e-45, 0.0, -0.0],
    ]  # fmt: skip
    filters: tuple[dict[str, float], ...] = (
        {}, {"temperature": 1e-5}, {"temperature": most}, {"temperature": 9e-6}, {"top_p": 0.0},
        {"min_p": 1e-45}, {"min_p": 1.0, "top_p": 0.5}, {"top_k": 2}, {"top_k": 2**31 - 1},
    )  # fmt: skip
    logits_RV = torch.tensor([row * 2 for row in rows for _ in filters])
    settings = [
        Sampling(seed=seed, max_tokens=1, **one)  # type: ignore[arg-type]
        for seed in range(len(rows))
        for one in filters
    ]
    positions = list(range(1, len(settings) + 1))
    got = sample_tokens(logits_RV, rows_of(settings, positions)).tolist()
    assert got == twin_tokens(logits_RV, settings, positions)


@check
def masks_take_out_what_is_not_allowed() -> None:
    """Alike to the last bit: several tiles, words that end within the row or go beyond it."""
    for size, num_words in ((5, 1), (33, 1), (9000, 282), (4096, 128), (5000, 40), (70, 4)):
        dice = torch.Generator().manual_seed(size)
        bits = torch.randint(-(2**31), 2**31, (3, num_words), generator=dice, device="cpu")
        words_AW = bits.to(DEVICE, torch.int32)
        words_AW[2] = 0
        rows_A = torch.tensor([4, 0, 2])
        want_RV = noise(5, size, seed=1)
        got_RV = want_RV.clone()
        want_RV[4, 0] = got_RV[4, 0] = torch.nan
        masks.mask_tokens(want_RV, rows_A, words_AW)
        triton_mask.mask_tokens(got_RV, rows_A, words_AW)
        torch.testing.assert_close(got_RV, want_RV, rtol=0, atol=0, equal_nan=True)
        assert torch.isinf(got_RV[2]).all() and not torch.isinf(got_RV[1]).any()
        wide_RV = torch.zeros(6, size + 7)
        triton_mask.mask_tokens(wide_RV[:, :size], rows_A, words_AW)
        assert (wide_RV[:, size:] == 0).all() and torch.isinf(wide_RV[2, :size]).all()


@check
def penalties_are_those_of_the_twin() -> None:
    """Alike to the last bit: several tiles, tiles without a held token, odd scores and penalties,
    rows of a wider tensor."""
    most = 3.4028234663852886e38
    odd = torch.tensor([0.0, -0.0, most, -most, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-40])
    rules = penalties.PenaltyRules(
        rows_A=torch.tensor([4, 0, 2, 5]),
        places_A=torch.tensor([1, 3, 0, 2]),
        repetition_A=torch.tensor([1.3, 0.0, most, 1.0]),
        frequency_A=torch.tensor([0.1, 1e300, -2.0, 0.7], dtype=torch.float64),
        presence_A=torch.tensor([0.3, -1e300, 1e38, 0.1], dtype=torch.float64),
    )
    for size in (5, 300, 6000):
        dice = torch.Generator().manual_seed(size)
        seen_PV = torch.randint(0, 3, (4, size), generator=dice, device="cpu") == 0
        counts_PV = torch.randint(0, 9, (4, size), generator=dice, device="cpu") * seen_PV
        prompt_PV = torch.randint(0, 2, (4, size), generator=dice, device="cpu") * seen_PV
        counts_PV = (counts_PV + prompt_PV * penalties.IN_PROMPT).to(DEVICE, torch.int32)
        counts_PV[:, 2100:4200] = 0
        wide_RV = noise(6, size + 7, seed=2)
        wide_RV[:, : min(9, size)] = odd[: min(9, size)]
        want_RV = wide_RV[:, :size].clone()
        penalties.penalise(want_RV, counts_PV, rules)
        before_RV = wide_RV.clone()
        triton_penalties.penalise(wide_RV[:, :size], counts_PV, rules)
        torch.testing.assert_close(wide_RV[:, :size], want_RV, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(
            wide_RV[:, size:], before_RV[:, size:], rtol=0, atol=0, equal_nan=True
        )
        assert size == 5 or not torch.equal(wide_RV[4], before_RV[4])

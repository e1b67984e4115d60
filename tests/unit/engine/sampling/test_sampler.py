"""Distribution tests state their error rate: each fails a correct sampler once in 10^6 seeds;
the seeds are fixed, so they either always pass or always fail."""

# Shapes: R rows, V vocabulary.

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from support.forwards import chunk
from torch import Tensor

from engine.batch import Chunk, SampledToken
from engine.ops.philox import all_words, gumbel
from engine.sampling.grammar import AllowedTokens
from engine.sampling.sampler import sample_token, sample_tokens
from protocol.messages import Sampling

V = 50
ERROR_RATE = 1e-6


def row(seed: int = 0, *, size: int = V, scale: float = 2.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def sampling(**fields: Any) -> Sampling:
    return msgspec.convert({"seed": 0, "max_tokens": 99, **fields}, Sampling, strict=False)


def asking(
    *,
    position: int = 10,
    prompt_ids: tuple[int, ...] = (),
    outputs: tuple[int, ...] = (),
    **fields: Any,
) -> Chunk:
    return chunk(
        [1], table=[0], start=position - 1, sampling=sampling(**fields),
        prompt_ids=prompt_ids, outputs=outputs,
    )  # fmt: skip


def choose(logits_V: Tensor, eos: tuple[int, ...] = (), **fields: Any) -> SampledToken:
    token = sample_token(logits_V.numpy(), asking(**fields), eos_token_ids=eos)
    assert token is not None
    return token


def sample_all(logits_RV: Tensor, chunks: Sequence[Chunk]) -> list[int]:
    tokens = sample_tokens(logits_RV, chunks, eos_token_ids=())
    return [token.token_id for token in tokens if token is not None]


def draw(logits_V: Tensor, count: int, **fields: Any) -> Counter[int]:
    """One token for each of `count` positions."""
    return Counter(choose(logits_V, position=1 + i, **fields).token_id for i in range(count))


def assert_drawn_from(probabilities: Tensor, drawn: Counter[int]) -> None:
    """Chi-square, rare tokens pooled; fails a right sampler with probability ERROR_RATE."""
    total = sum(drawn.values())
    assert not any(probabilities[token] == 0 for token in drawn), "drew what has no probability"
    expected = probabilities.double() * total
    common = (expected >= 5).nonzero()[:, 0].tolist()
    terms = [
        (drawn[token] - float(expected[token])) ** 2 / float(expected[token]) for token in common
    ]
    rest = float(expected.sum() - expected[common].sum())
    if rest >= 1:
        terms.append((total - sum(drawn[token] for token in common) - rest) ** 2 / rest)
    degrees = len(terms) - 1
    bound = -math.log(ERROR_RATE)  # Laurent and Massart 2000, lemma 1
    assert sum(terms) < degrees + 2 * math.sqrt(degrees * bound) + 2 * bound


def test_temperature_zero_takes_the_most_likely() -> None:
    assert choose(row(), temperature=0.0).token_id == int(row().argmax())


def test_equal_logits_go_to_the_lower_id() -> None:
    logits = torch.zeros(V)
    assert choose(logits, temperature=0.0).token_id == 0
    assert sample_all(logits[None], [asking(temperature=0.0)]) == [0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_drawn_from_the_softmax(temperature: float) -> None:
    drawn = draw(row(), 4000, temperature=temperature, seed=17)
    assert_drawn_from((row() / temperature).softmax(0), drawn)


def test_top_k_draws_from_the_k_best_renormalised() -> None:
    best = row().topk(5)
    expected = torch.zeros(V).index_copy(0, best.indices, best.values.softmax(0))
    assert_drawn_from(expected, draw(row(), 2000, top_k=5, seed=3))


@pytest.mark.parametrize("size", [V, 3000])
@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_top_p_draws_from_the_smallest_set_that_reaches_p(size: int, top_p: float) -> None:
    logits = row(size=size, scale=1.0 if size > V else 2.0)
    ordered = logits.softmax(0).sort(descending=True)
    before = ordered.values.cumsum(0) - ordered.values
    kept = ordered.indices[before < top_p]
    expected = torch.zeros(size).index_copy(0, kept, logits.softmax(0)[kept])
    assert_drawn_from(expected / expected.sum(), draw(logits, 1500, top_p=top_p, seed=5))


@pytest.mark.parametrize("temperature", [0.6, 1.4])
def test_all_filters_together_draw_from_what_each_leaves_the_next(temperature: float) -> None:
    """min_p, then top_k, then top_p on the mass that is left."""
    best = (row(4) / temperature).softmax(0).sort(descending=True)
    kept = best.values * (best.values >= 0.02 * best.values[0])
    kept[12:] = 0
    kept /= kept.sum()
    kept[kept.cumsum(0) - kept >= 0.9] = 0
    assert 3 < kept.count_nonzero() < 12
    expected = torch.zeros(V).index_copy(0, best.indices, kept / kept.sum())
    fields = {"min_p": 0.02, "top_k": 12, "top_p": 0.9, "temperature": temperature}
    assert_drawn_from(expected, draw(row(4), 2000, seed=21, **fields))


def test_equal_scores_at_the_edge_of_a_filter_go_to_lower_ids() -> None:
    logits = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    assert set(draw(logits, 100, top_k=3)) == {1, 3, 4}
    assert set(draw(logits[logits > 0], 100, top_p=0.5)) == {0, 1}


@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("fields", [{}, {"top_k": 900}, {"top_p": 0.98}, {"min_p": 1e-6}])
def test_noise_left_undrawn_could_not_have_won(scale: float, fields: dict[str, Any]) -> None:
    """Beside the definition, written out over every token."""
    logits = row(3, size=2000, scale=scale)
    for position in range(1, 25):
        asked = asking(position=position, seed=-9, **fields)
        assert asked.sampling is not None
        gaps_V = (logits.max() - logits).numpy()
        if asked.sampling.min_p:
            gaps_V[gaps_V > -np.log(np.float32(asked.sampling.min_p))] = np.inf
        order = np.argsort(gaps_V, kind="stable")
        order = order[: asked.sampling.top_k or None]
        held = np.exp(-gaps_V[order].astype(np.float64)).cumsum()
        if asked.sampling.top_p < 1:
            order = order[: int((held < np.float32(asked.sampling.top_p) * held[-1]).sum()) + 1]
        kept = np.full(len(logits), -np.inf)
        kept[order] = -gaps_V[order].astype(np.float64)
        sums = kept + gumbel(all_words(len(logits), seed=-9, position=position))
        assert choose(logits, position=position, seed=-9, **fields).token_id == sums.argmax()


def test_long_texts_and_any_seed_draw_from_the_softmax_too() -> None:
    far = (1 << 31) - 500
    drawn = Counter(choose(row(), position=far + i, seed=-(1 << 63)).token_id for i in range(1000))
    assert_drawn_from(row().softmax(0), drawn)


def test_top_p_counts_within_what_top_k_left() -> None:
    logits = torch.tensor([3.0, 2.9, 2.8, 2.7, -9.0]).repeat_interleave(1)
    drawn = draw(logits, 300, top_k=2, top_p=0.6)
    assert set(drawn) == {0, 1}
    assert set(draw(logits, 300, top_k=2, top_p=0.5)) == {0}


def test_min_p_drops_what_is_less_likely_than_its_share_of_the_best() -> None:
    logits = torch.tensor([0.0, math.log(0.5), math.log(0.19), math.log(0.01)])
    assert_drawn_from(
        torch.tensor([1.0, 0.5, 0.0, 0.0]) / 1.5, draw(logits, 1000, min_p=0.2, seed=9)
    )


def test_the_token_depends_on_seed_and_position_alone() -> None:
    """Not on the batch, nor on what was drawn before."""
    logits_RV = torch.stack([row(seed) for seed in range(6)])
    chunks = [asking(position=5 + r, seed=100 + r, temperature=0.9, top_p=0.95) for r in range(6)]
    together = sample_tokens(logits_RV, chunks, eos_token_ids=())
    backwards = sample_tokens(logits_RV.flip(0), chunks[::-1], eos_token_ids=())[::-1]
    alone = [
        sample_tokens(logits_RV[r : r + 1], [chunks[r]], eos_token_ids=())[0] for r in range(6)
    ]
    assert together == backwards == alone


def test_other_seeds_and_positions_draw_otherwise() -> None:
    logits = torch.zeros(10_000)
    positions = [choose(logits, position=p).token_id for p in range(1, 30)]
    seeds = [choose(logits, seed=s).token_id for s in range(30)]
    assert len(set(positions)) > 25
    assert len(set(seeds)) > 25


def test_a_repetition_penalty_moves_seen_tokens_towards_unlikely() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, -1.1])
    assert choose(logits, temperature=0.0, repetition_penalty=1.5, prompt_ids=(0,)).token_id == 1
    assert choose(logits, temperature=0.0, repetition_penalty=1.5, outputs=(0, 1)).token_id == 0
    below = torch.tensor([-1.0, -1.2])
    assert choose(below, temperature=0.0, repetition_penalty=1.5, outputs=(0,)).token_id == 1


def test_presence_and_frequency_penalties_look_at_outputs_only() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0])
    fields: dict[str, Any] = {"temperature": 0.0}
    assert choose(logits, presence_penalty=1.5, prompt_ids=(0,), **fields).token_id == 0
    assert choose(logits, presence_penalty=1.5, outputs=(0,), **fields).token_id == 1
    assert choose(logits, frequency_penalty=0.6, outputs=(0,), **fields).token_id == 0
    assert choose(logits, frequency_penalty=0.6, outputs=(0, 0), **fields).token_id == 1


def test_a_logit_bias_is_added() -> None:
    assert choose(row(), temperature=0.0, logit_bias=((7, 100.0),)).token_id == 7
    banned = int(row().argmax())
    assert choose(row(), temperature=0.0, logit_bias=((banned, -100.0),)).token_id != banned


def test_tokens_that_end_the_text_wait_for_min_tokens() -> None:
    logits = torch.tensor([9.0, 8.0, 7.0, 6.0])
    fields: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": (1,)}
    assert choose(logits, eos=(0,), outputs=(3,), **fields).token_id == 2
    assert choose(logits, eos=(0,), outputs=(3, 3), **fields).token_id == 0
    assert choose(logits, eos=(0,), ignore_eos=True, **fields).token_id == 0


def test_a_ban_on_everything_is_lifted() -> None:
    logits = torch.tensor([2.0, 1.0])
    assert choose(logits, eos=(0, 1), temperature=0.0, min_tokens=5).token_id == 0


def test_logprobs_are_of_the_model_not_of_the_shaped_distribution() -> None:
    expected = row().double().log_softmax(0)
    token = choose(row(), temperature=0.0, num_logprobs=3, logit_bias=((7, 100.0),))
    assert token.token_id == 7
    assert token.logprob == pytest.approx(float(expected[7]), abs=1e-9)
    best = expected.sort(descending=True)
    assert [i for i, _ in token.top] == best.indices[:3].tolist()
    assert [p for _, p in token.top] == pytest.approx(best.values[:3].tolist(), abs=1e-9)


def test_zero_top_logprobs_give_that_of_the_chosen_token_alone() -> None:
    token = choose(row(), num_logprobs=0)
    assert token.logprob is not None
    assert token.top == ()


def test_greedy_rows_beside_sampled_ones_take_their_argmax() -> None:
    logits_RV = torch.stack([row(1), row(2), row(3)])
    chunks = [asking(temperature=0.0), asking(temperature=1.0), asking(temperature=1e-6)]
    assert sample_all(logits_RV, chunks)[::2] == logits_RV[[0, 2]].argmax(1).tolist()


def test_nan_is_never_chosen() -> None:
    logits = row()
    logits[3] = torch.nan
    assert choose(logits, temperature=0.0).token_id == int(
        row().index_fill(0, torch.tensor([3]), -9e9).argmax()
    )
    assert sample_all(logits[None], [asking(temperature=0.0)]) != [3]
    assert 3 not in draw(logits, 300, temperature=5.0)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_finite_logit_has_no_token_and_the_others_have(
    value: float, temperature: float
) -> None:
    logits_RV = torch.stack([row(1), torch.full((V,), value), row(2)])
    chunks = [asking(temperature=temperature)] * 3
    tokens = sample_tokens(logits_RV, chunks, eos_token_ids=())
    alone = [sample_tokens(logits_RV[r : r + 1], chunks[:1], eos_token_ids=())[0] for r in (0, 2)]
    assert tokens == [alone[0], None, alone[1]]
    assert None not in alone


def test_one_token_with_weight_is_always_drawn() -> None:
    logits = torch.full((V,), -torch.inf)
    logits[11] = 0.0
    assert set(draw(logits, 50, top_p=0.5)) == {11}
    assert set(draw(logits, 50, temperature=100.0)) == {11}


def test_a_chunk_that_asks_for_no_token_is_a_slip() -> None:
    silent = msgspec.structs.replace(asking(), sampling=None)
    with pytest.raises(AssertionError):
        sample_token(row().numpy(), silent, eos_token_ids=())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_an_allowed_id_is_chosen_and_bans_that_leave_none_are_lifted(
    temperature: float,
) -> None:
    logits_V, allowed = row(), AllowedTokens.of((3, 7))
    plain: dict[str, Any] = {}
    for fields in (plain, {"repetition_penalty": 1.5, "logit_bias": ((9, 100.0),)}):
        free = asking(temperature=temperature, prompt_ids=(3, 9), **fields)
        held = msgspec.structs.replace(free, allowed=allowed)
        (token,) = sample_all(logits_V[None], [held])
        assert token in (3, 7)
    banned = asking(temperature=temperature, min_tokens=5, stop_token_ids=(3, 7))
    (token,) = sample_all(logits_V[None], [msgspec.structs.replace(banned, allowed=allowed)])
    assert token in (3, 7)
    nothing = msgspec.structs.replace(banned, allowed=AllowedTokens.of((V,)))
    assert sample_tokens(
        logits_V[None],
        [
            nothing,
        ],
        eos_token_ids=(),
    ) == [None]


def test_logprobs_of_an_allowed_id_are_the_models_own() -> None:
    logits_V, allowed = row(), AllowedTokens.of((3,))
    held = msgspec.structs.replace(asking(temperature=0.0, num_logprobs=1), allowed=allowed)
    token = sample_token(logits_V.numpy(), held, eos_token_ids=())
    assert token is not None and token.token_id == 3
    assert token.logprob == pytest.approx(float(logits_V.log_softmax(0)[3]), abs=1e-5)
    assert token.top[0][0] == int(logits_V.argmax())

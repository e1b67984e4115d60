"""Chooses a token from one row of logits.

A pure function of (row, sampling, prompt, outputs, position): the same token whatever the batch,
the worker or a restart in between.

The token is the one with the largest score / temperature + gumbel(seed, position, token id)
(`engine.ops.philox`) of those that the filters keep: noise belongs to a token, so the choice does
not depend on which others are looked at. Equal sums go to the lower id.

Order, as vLLM: ids that are not allowed are out; repetition, frequency and presence penalties;
logit_bias; min_tokens bans the tokens that would end the text; temperature; min_p; top_k; top_p on
what is left. Logprobs are of the model's own distribution, before all of it. NaN is never chosen
and counts as -inf; when the bans leave nothing they are lifted; a row with no finite logit among
those allowed (damaged weights or KV) has no token, and the other rows theirs.
A finite score stays finite, whatever the penalties: beyond float32 it is its largest.
Temperature, min_p, top_p, penalties and bias count as float32. In numpy, not torch: sums do not
depend on the number of threads.
"""

# Shapes: R rows, V vocabulary, C candidates left by the filters.

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Chunk, SampledToken, Words
from engine.ops.cpu.words import all_words
from engine.ops.philox import MAX_GUMBEL, gumbel, words
from protocol.messages import Sampling

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

GREEDY_BELOW = 1e-5
"""A temperature this low is 0: dividing by it would overflow."""
MOST = float(np.finfo(np.float32).max)
_FEW = 16
"""All words of a vocabulary cost less than those of this part of it, one by one."""
_MOST_LIKELY = 256
"""Candidates top_p looks at before it sorts the whole vocabulary, and whose noise is drawn before
that of the others."""


def as_float32(value: float) -> float:
    """The nearest that is finite; of NaN, the least."""
    return float(np.float32(max(-MOST, min(value, MOST))))


def biases(sampling: Sampling) -> dict[int, float]:
    """By token, each of which may be named twice."""
    sums: dict[int, float] = {}
    for token_id, bias in sampling.logit_bias:
        sums[token_id] = sums.get(token_id, 0.0) + bias
    return {token_id: as_float32(bias) for token_id, bias in sums.items()}


def sample_tokens(
    logits_RV: Tensor, chunks: Sequence[Chunk], *, eos_token_ids: Sequence[int]
) -> list[SampledToken | None]:
    """One token for each row; row r belongs to chunk r, which must have `sampling`. None: the
    model answered NaN or -inf for every token."""
    plain = [_is_plain_greedy(chunk) for chunk in chunks]
    rows_RV: Floats = logits_RV.float().numpy()
    allowed_RV = _all_allowed(rows_RV, chunks, plain)
    best: list[int] = allowed_RV.argmax(axis=1).tolist() if any(plain) else []
    tokens: list[SampledToken | None] = []
    for r, chunk in enumerate(chunks):
        if plain[r] and np.isfinite(allowed_RV[r, best[r]]):
            tokens.append(SampledToken(token_id=best[r]))
        else:
            tokens.append(sample_token(rows_RV[r], chunk, eos_token_ids=eos_token_ids))
    return tokens


def sample_token(
    logits_V: Floats, chunk: Chunk, *, eos_token_ids: Sequence[int]
) -> SampledToken | None:
    """The token after `chunk`, with the logprobs its sampling asks for. None as above."""
    sampling = chunk.sampling
    assert sampling is not None, "the chunk asks for no token"
    raw_V: Floats = np.nan_to_num(logits_V, nan=-np.inf, posinf=None, neginf=-np.inf)
    allowed_V = raw_V
    if chunk.allowed is not None:
        allowed_V = _allowed(raw_V, chunk.allowed.words())
    if not np.isfinite(allowed_V).any():
        return None
    scores_V = _shaped(allowed_V, chunk, sampling, eos_token_ids)
    if not (scores_V > -np.inf).any():
        scores_V = allowed_V
    if _is_greedy(sampling):
        token_id = int(scores_V.argmax())
    else:
        token_id = _draw(scores_V, sampling, chunk.position)
    if sampling.num_logprobs is None:
        return SampledToken(token_id=token_id)
    return _with_logprobs(token_id, raw_V, sampling.num_logprobs)


def _all_allowed(rows_RV: Floats, chunks: Sequence[Chunk], plain: Sequence[bool]) -> Floats:
    """With -inf for what is not, in the plain rows."""
    masks = {r: chunk.allowed for r, chunk in enumerate(chunks) if plain[r] and chunk.allowed}
    if not masks:
        return rows_RV
    allowed_RV = rows_RV.copy()
    for r, allowed in masks.items():
        allowed_RV[r] = _allowed(rows_RV[r], allowed.words())
    return allowed_RV


def _allowed(scores_V: Floats, words: Words) -> Floats:
    """A copy with -inf for those that are not."""
    bits_V = np.unpackbits(words.view(np.uint8), count=len(scores_V), bitorder="little")
    return np.where(bits_V.view(np.bool_), scores_V, np.float32(-np.inf))


def _is_greedy(sampling: Sampling) -> bool:
    return as_float32(sampling.temperature) < as_float32(GREEDY_BELOW)


def _is_plain_greedy(chunk: Chunk) -> bool:
    """Whether the answer is the argmax of what is allowed, and nothing else."""
    s = chunk.sampling
    assert s is not None, "the chunk asks for no token"
    penalised = s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0
    banned = not s.may_end(chunk.num_outputs)
    return not (
        not _is_greedy(s) or penalised or banned or s.logit_bias or s.num_logprobs is not None
    )


def _shaped(
    allowed_V: Floats, chunk: Chunk, sampling: Sampling, eos_token_ids: Sequence[int]
) -> Floats:
    """A copy with penalties, bias and bans."""
    scores_V = allowed_V.copy()
    if sampling.repetition_penalty != 1:
        outputs = np.asarray(chunk.outputs, dtype=np.int64)
        seen = np.concatenate((np.asarray(chunk.prompt_ids, dtype=np.int64), outputs))
        mine, penalty = scores_V[seen], as_float32(sampling.repetition_penalty)
        with np.errstate(all="ignore"):
            _change(scores_V, seen, np.where(mine > 0, mine / penalty, mine * penalty))
    if chunk.outputs and (sampling.frequency_penalty != 0 or sampling.presence_penalty != 0):
        seen, counts = np.unique(np.asarray(chunk.outputs, dtype=np.int64), return_counts=True)
        malus = sampling.frequency_penalty * counts + sampling.presence_penalty
        with np.errstate(all="ignore"):
            malus = np.clip(malus, -MOST, MOST).astype(np.float32)
            _change(scores_V, seen, scores_V[seen] - malus)
    if sampling.logit_bias:
        ids, bias = zip(*biases(sampling).items(), strict=True)
        seen = np.array(ids, np.int64)
        with np.errstate(all="ignore"):
            _change(scores_V, seen, scores_V[seen] + np.array(bias, np.float32))
    if not sampling.may_end(chunk.num_outputs):
        enders = sampling.ending_ids(eos_token_ids)
        scores_V[[token_id for token_id in enders if token_id < len(scores_V)]] = -np.inf
    return scores_V


def _change(scores_V: Floats, seen: Ids, changed: Floats) -> None:
    """What was out stays out."""
    before = scores_V[seen]
    scores_V[seen] = np.where(before > -np.inf, np.clip(changed, -MOST, MOST), before)


def _draw(scores_V: Floats, sampling: Sampling, position: int) -> int:
    with np.errstate(over="ignore"):  # a gap too wide for float32 is infinite
        gaps_V = np.abs((scores_V.max() - scores_V) / as_float32(sampling.temperature))
    if (min_p := np.float32(as_float32(sampling.min_p))) > 0:
        gaps_V[gaps_V > np.abs(np.log(min_p))] = np.inf
    ids_C = _candidates(gaps_V, sampling)
    gaps_C = gaps_V if ids_C is None else gaps_V[ids_C]
    index = _loudest(gaps_C, ids_C, sampling.seed, position)
    return index if ids_C is None else int(ids_C[index])


def _loudest(gaps_C: Floats, ids_C: Ids | None, seed: int, position: int) -> int:
    """Which of the candidates, ascending by id, has the largest gumbel - gap. The noise of the
    best few comes first; then only that of candidates whose gap it could still make up for."""
    if len(gaps_C) > 2 * _MOST_LIKELY:
        best = np.argpartition(gaps_C, _MOST_LIKELY)[:_MOST_LIKELY]
        sums = _sums(gaps_C[best], best if ids_C is None else ids_C[best], seed, position)
        left = np.flatnonzero(gaps_C <= MAX_GUMBEL - sums.max())
    else:
        left = np.flatnonzero(gaps_C < np.inf)
    if _FEW * len(left) > len(gaps_C) and ids_C is None:
        words_V = all_words(len(gaps_C), seed=seed, position=position)
        sums = gumbel(words_V[left]) - gaps_C[left]
    else:
        sums = _sums(gaps_C[left], left if ids_C is None else ids_C[left], seed, position)
    return int(left[sums.argmax()])


def _sums(gaps_N: Floats, ids_N: Ids, seed: int, position: int) -> NDArray[np.float64]:
    noise_N = gumbel(words(ids_N, seed=seed, position=position))
    return np.subtract(noise_N, gaps_N, dtype=np.float64)


def _candidates(gaps_V: Floats, sampling: Sampling) -> Ids | None:
    """Ids that top_k and top_p keep, ascending; None: all. Ties at the edge go to lower ids."""
    size = len(gaps_V)
    top_k = sampling.top_k if 0 < sampling.top_k < size else size
    if sampling.top_p >= 1:
        return None if top_k == size else np.sort(_best(gaps_V, top_k))
    if top_k == size > _MOST_LIKELY:  # mostly a few tokens hold the mass: no need to sort all
        ids_C = _best(gaps_V, _MOST_LIKELY)
        total = float(_masses(gaps_V).sum())
        kept = _num_reaching(gaps_V[ids_C], sampling.top_p, total=total)
        if kept < _MOST_LIKELY:
            return np.sort(ids_C[:kept])
    ids_C = _best(gaps_V, top_k)
    gaps_C = gaps_V[ids_C]
    kept = _num_reaching(gaps_C, sampling.top_p, total=float(_masses(gaps_C).sum()))
    return np.sort(ids_C[:kept])


def _masses(gaps_C: Floats) -> NDArray[np.float64]:
    """Probabilities, that of the best being 1."""
    return np.exp(-gaps_C.astype(np.float64))


def _num_reaching(gaps_C: Floats, top_p: float, *, total: float) -> int:
    """How many of the candidates, best first, it takes to hold top_p of the total mass."""
    held_C = _masses(gaps_C).cumsum()
    return min(int((held_C < as_float32(top_p) * total).sum()) + 1, len(gaps_C))


def _best(gaps_V: Floats, count: int) -> Ids:
    """The ids of the `count` smallest gaps, best first, equals by id."""
    ids = np.arange(len(gaps_V))
    if count < len(gaps_V):
        edge = np.partition(gaps_V, count - 1)[count - 1]
        ids = ids[gaps_V <= edge]
    return ids[np.argsort(gaps_V[ids], kind="stable")[:count]]


def _log_sum_exp(scores_V: Floats) -> float:
    top = float(scores_V.max())
    return top + float(np.log(np.exp(scores_V.astype(np.float64) - top).sum()))


def _with_logprobs(token_id: int, raw_V: Floats, num_logprobs: int) -> SampledToken:
    log_total = _log_sum_exp(raw_V)
    top: tuple[tuple[int, float], ...] = ()
    if num_logprobs:
        ids = _best(-raw_V, min(num_logprobs, len(raw_V)))
        top = tuple((int(i), float(raw_V[i]) - log_total) for i in ids)
    return SampledToken(token_id=token_id, logprob=float(raw_V[token_id]) - log_total, top=top)

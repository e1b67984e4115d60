"""Chooses a token from one row of logits.

Called by `engine.torch_runner`. A pure function of (row, sampling, prompt, outputs, position):
the same token whatever the batch, the worker or a restart in between.

Order, as vLLM: repetition, frequency and presence penalties; logit_bias; min_tokens bans the
tokens that would end the text; temperature; min_p; top_k; top_p on what is left. Logprobs are of
the model's own distribution, before all of it. NaN is never chosen and counts as -inf; when the
bans leave nothing they are lifted; a row with no finite logit at all (damaged weights or KV) has
no token, and the other rows theirs.
In numpy, not torch: sums do not depend on the number of threads.
"""

# Shapes: R rows, V vocabulary, C candidates left by the filters.

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Chunk, SampledToken
from engine.philox import uniform
from protocol.messages import Sampling

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

GREEDY_BELOW = 1e-5
"""A temperature this low is 0: dividing by it would overflow."""
_MOST_LIKELY = 256
"""Candidates top_p looks at before it sorts the whole vocabulary."""


def sample(
    logits_RV: Tensor, chunks: Sequence[Chunk], *, eos_token_ids: Sequence[int]
) -> list[SampledToken | None]:
    """One token for each row; row r belongs to chunk r, which must have `sampling`. None: the
    model answered NaN or -inf for every token."""
    plain = [_is_plain_greedy(chunk) for chunk in chunks]
    rows_RV: Floats = logits_RV.float().numpy()
    best: list[int] = rows_RV.argmax(axis=1).tolist() if any(plain) else []
    tokens: list[SampledToken | None] = []
    for r, chunk in enumerate(chunks):
        if plain[r] and np.isfinite(rows_RV[r, best[r]]):
            tokens.append(SampledToken(token_id=best[r]))
        else:
            tokens.append(sample_one(rows_RV[r], chunk, eos_token_ids=eos_token_ids))
    return tokens


def sample_one(
    logits_V: Floats, chunk: Chunk, *, eos_token_ids: Sequence[int]
) -> SampledToken | None:
    """The token after `chunk`, with the logprobs its sampling asks for. None as in `sample`."""
    sampling = chunk.sampling
    assert sampling is not None, "the chunk asks for no token"
    raw_V: Floats = np.nan_to_num(logits_V, nan=-np.inf, posinf=None, neginf=-np.inf)
    if not np.isfinite(raw_V).any():
        return None
    scores_V = _shaped(raw_V, chunk, sampling, eos_token_ids)
    if not (scores_V > -np.inf).any():
        scores_V = raw_V
    if sampling.temperature < GREEDY_BELOW:
        token_id = int(scores_V.argmax())
    else:
        number = uniform(seed=sampling.seed, position=chunk.position)
        token_id = _draw(scores_V, sampling, number)
    if sampling.num_logprobs is None:
        return SampledToken(token_id=token_id)
    return _with_logprobs(token_id, raw_V, sampling.num_logprobs)


def _is_plain_greedy(chunk: Chunk) -> bool:
    """Whether the answer is the row's argmax and nothing else."""
    s = chunk.sampling
    assert s is not None, "the chunk asks for no token"
    penalised = s.repetition_penalty != 1 or s.presence_penalty != 0 or s.frequency_penalty != 0
    banned = not s.may_end(len(chunk.outputs))
    return not (
        s.temperature >= GREEDY_BELOW
        or penalised
        or banned
        or s.logit_bias
        or s.num_logprobs is not None
    )


def _shaped(
    raw_V: Floats, chunk: Chunk, sampling: Sampling, eos_token_ids: Sequence[int]
) -> Floats:
    """A copy with penalties, bias and bans."""
    scores_V = raw_V.copy()
    if sampling.repetition_penalty != 1:
        outputs = np.asarray(chunk.outputs, dtype=np.int64)
        seen = np.concatenate((np.asarray(chunk.prompt_ids, dtype=np.int64), outputs))
        mine, penalty = scores_V[seen], np.float32(sampling.repetition_penalty)
        scores_V[seen] = np.where(mine > 0, mine / penalty, mine * penalty)
    if chunk.outputs and (sampling.frequency_penalty != 0 or sampling.presence_penalty != 0):
        seen, counts = np.unique(np.asarray(chunk.outputs, dtype=np.int64), return_counts=True)
        malus = sampling.frequency_penalty * counts + sampling.presence_penalty
        scores_V[seen] -= malus.astype(np.float32)
    for token_id, bias in sampling.logit_bias:
        scores_V[token_id] += np.float32(bias)
    if not sampling.may_end(len(chunk.outputs)):
        enders = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
        scores_V[[token_id for token_id in enders if token_id < len(scores_V)]] = -np.inf
    return scores_V


def _draw(scores_V: Floats, sampling: Sampling, number: float) -> int:
    """Inverse transform over the candidates in order of token id, in float64."""
    scores_V = scores_V / np.float32(sampling.temperature)
    if sampling.min_p > 0:
        floor = scores_V.max() + np.float32(np.log(sampling.min_p))
        scores_V[scores_V < floor] = -np.inf
    ids_C = _candidates(scores_V, sampling)
    chosen_C = (scores_V if ids_C is None else scores_V[ids_C]).astype(np.float64)
    cumulative_C = np.exp(chosen_C - chosen_C.max()).cumsum()
    goal = number * cumulative_C[-1]
    # The first whose sum passes the goal; never a token of weight 0, for it adds nothing.
    index = min(
        int(np.searchsorted(cumulative_C, goal, side="right")),
        int(np.searchsorted(cumulative_C, cumulative_C[-1], side="left")),
    )
    return index if ids_C is None else int(ids_C[index])


def _candidates(scores_V: Floats, sampling: Sampling) -> Ids | None:
    """Ids that top_k and top_p keep, ascending; None: all. Ties at the edge go to lower ids."""
    size = len(scores_V)
    top_k = sampling.top_k if 0 < sampling.top_k < size else size
    if sampling.top_p >= 1:
        return None if top_k == size else np.sort(_best(scores_V, top_k))
    if top_k == size > _MOST_LIKELY:  # mostly a few tokens hold the mass: no need to sort all
        ids_C = _best(scores_V, _MOST_LIKELY)
        kept = _num_reaching(scores_V[ids_C], sampling.top_p, log_total=_log_sum_exp(scores_V))
        if kept < _MOST_LIKELY:
            return np.sort(ids_C[:kept])
    ids_C = _best(scores_V, top_k)
    chosen_C = scores_V[ids_C]
    kept = _num_reaching(chosen_C, sampling.top_p, log_total=_log_sum_exp(chosen_C))
    return np.sort(ids_C[:kept])


def _num_reaching(scores_C: Floats, top_p: float, *, log_total: float) -> int:
    """How many of the scores, best first, it takes for their probabilities to sum to top_p."""
    mass_C = np.exp(scores_C.astype(np.float64) - log_total).cumsum()
    return min(int((mass_C < top_p).sum()) + 1, len(scores_C))


def _best(scores_V: Floats, count: int) -> Ids:
    """The ids of the `count` best scores, best first, equals by id."""
    ids = np.arange(len(scores_V))
    if count < len(scores_V):
        edge = np.partition(scores_V, len(scores_V) - count)[len(scores_V) - count]
        ids = ids[scores_V >= edge]
    return ids[np.argsort(-scores_V[ids], kind="stable")[:count]]


def _log_sum_exp(scores_V: Floats) -> float:
    top = float(scores_V.max())
    return top + float(np.log(np.exp(scores_V.astype(np.float64) - top).sum()))


def _with_logprobs(token_id: int, raw_V: Floats, num_logprobs: int) -> SampledToken:
    log_total = _log_sum_exp(raw_V)
    top: tuple[tuple[int, float], ...] = ()
    if num_logprobs:
        ids = _best(raw_V, min(num_logprobs, len(raw_V)))
        top = tuple((int(i), float(raw_V[i]) - log_total) for i in ids)
    return SampledToken(token_id=token_id, logprob=float(raw_V[token_id]) - log_total, top=top)
